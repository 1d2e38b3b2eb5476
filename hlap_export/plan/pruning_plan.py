"""The pruning plan: what each layer's attention becomes, as versioned JSON.

Layers count from 0 at the embedding. Illegal states can't be written: alpha 0 *is* `skip`, kept heads are a
non-empty set, and layer 0 keeps its attention because the KV cache's length is read from it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from hlap_export.artifacts import write_text_whole
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError

MAX_ALPHA = 1.0


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Keep(_Strict):
    """The attention stays as it is."""

    kind: Literal["keep"] = "keep"


class KeepHeads(_Strict):
    """Attention with only these query heads (indices in the dense layer).

    A KV group stays when one of its query heads does; every group that stays keeps the same number, so that the
    layer is still grouped-query attention.
    """

    kind: Literal["keep_heads"] = "keep_heads"
    query_heads: Annotated[tuple[int, ...], Field(min_length=1)]

    @field_validator("query_heads")
    @classmethod
    def _sorted_and_unique(cls, heads: tuple[int, ...]) -> tuple[int, ...]:
        if list(heads) != sorted(set(heads)) or heads[0] < 0:
            raise ValueError("query_heads must be ascending indices from 0, each once")
        return heads

    def kv_groups(self, heads_per_group: int) -> tuple[int, ...]:
        """The KV groups that stay, ascending."""
        return tuple(sorted({head // heads_per_group for head in self.query_heads}))


class ValueOnly(_Strict):
    """Each token attends only to itself: `x + alpha * o_proj(rep(v_proj(norm(x))))` (HARP, arXiv 2507.01900)."""

    kind: Literal["value_only"] = "value_only"
    alpha: Annotated[float, Field(gt=0, le=MAX_ALPHA)]


class Skip(_Strict):
    """No attention at all: alpha 0."""

    kind: Literal["skip"] = "skip"


AttentionPlan = Annotated[Keep | KeepHeads | ValueOnly | Skip, Field(discriminator="kind")]


class ModelIdentity(_Strict):
    """The shapes that a model must have for the plan to apply to it."""

    model_type: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def of(cls, layout: ModelLayout) -> ModelIdentity:
        return cls(
            model_type=layout.family.model_type,
            num_layers=layout.num_layers,
            hidden_size=layout.hidden_size,
            num_heads=layout.num_heads,
            num_kv_heads=layout.num_kv_heads,
            head_dim=layout.head_dim,
        )


class TextWindows(_Strict):
    """Which text a number was computed on: the first `num_windows` disjoint windows of `window_length` tokens."""

    name: str
    sha256: str
    num_windows: int
    window_length: int


class AlphaScore(_Strict):
    """Perplexity on the calibration text with the layer's alpha at this value."""

    alpha: float
    perplexity: float


class LayerSearch(_Strict):
    """The perplexity curve that decided one layer's alpha."""

    layer: int
    curve: tuple[AlphaScore, ...]

    @property
    def best(self) -> AlphaScore:
        """The lowest perplexity; ties go to the smaller alpha."""
        return min(self.curve, key=lambda score: (score.perplexity, score.alpha))


class SearchRecord(_Strict):
    """How a search arrived at the plan: its text, its curves, and what the obvious alternatives would cost.

    Perplexities are on the calibration text; `all_ones` sets alpha 1 in every pruned layer, `all_dropped` alpha 0.
    """

    text: TextWindows
    perplexity_dense: float
    perplexity_planned: float
    perplexity_all_ones: float
    perplexity_all_dropped: float
    layers: tuple[LayerSearch, ...]


class PruningPlan(_Strict):
    """What happens to each layer's attention; the only thing that planners produce."""

    format: Literal["hlap-export/plan/1"] = "hlap-export/plan/1"
    method: str
    model: ModelIdentity
    attention: tuple[AttentionPlan, ...]
    search: SearchRecord | None = None

    @property
    def alphas(self) -> dict[int, float]:
        """Alpha of each layer that loses its attention, by layer index; 0.0 where it is skipped."""
        return {
            index: layer.alpha if isinstance(layer, ValueOnly) else 0.0
            for index, layer in enumerate(self.attention)
            if isinstance(layer, ValueOnly | Skip)
        }

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: Path) -> None:
        write_text_whole(path, self.to_json())


def load_plan(path: Path) -> PruningPlan:
    """Read a plan file.

    Raises:
        PlanError: no such file, not JSON, an unknown key, or a value out of range.
    """
    if not path.is_file():
        raise PlanError(
            where=str(path), expected="a plan file", found="no such file", fix="make one with `hlap-export plan`"
        )
    try:
        return PruningPlan.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        found = first["msg"] if first["type"] == "json_invalid" else f"{first['msg']} (value {first['input']!r:.80})"
        raise PlanError(
            where=f"{path}{f', {place}' if place else ''}",
            expected="a plan of format hlap-export/plan/1",
            found=found,
            fix="correct that entry; alpha lies in (0, 1], and alpha 0 is written as kind skip",
        ) from error


def attention_of_alpha(alpha: float, where: str) -> ValueOnly | Skip:
    """The layer plan for an alpha: 0 is `skip`, (0, 1] is `value_only`.

    Raises:
        PlanError: NaN, negative, or above 1.
    """
    if math.isnan(alpha) or not 0 <= alpha <= MAX_ALPHA:
        raise PlanError(
            where=where,
            expected="alpha in [0, 1]: 1 keeps the attention output as it is, 0 removes the block",
            found=str(alpha),
            fix="choose a value in that range (HARP's grid is 0.0, 0.1, ..., 1.0)",
        )
    return ValueOnly(alpha=alpha) if alpha else Skip()


def plan_of_alphas(layout: ModelLayout, alphas: Mapping[int, float], *, method: str, **rest: Any) -> PruningPlan:
    """The plan that gives these layers their alphas and keeps all others, validated against the model.

    Raises:
        PlanError: a layer out of range or an alpha outside [0, 1].
    """
    for layer in alphas:
        if not 0 <= layer < layout.num_layers:
            raise PlanError(
                where=f"layer {layer}",
                expected=f"a layer from 1 to {layout.num_layers - 1} (layers count from 0 at the embedding)",
                found=f"a model of {layout.num_layers} layers",
                fix="choose layers that the model has",
            )
    plan = PruningPlan(
        method=method,
        model=ModelIdentity.of(layout),
        attention=tuple(
            attention_of_alpha(alphas[index], f"alpha of layer {index}") if index in alphas else Keep()
            for index in range(layout.num_layers)
        ),
        **rest,
    )
    validate_plan(plan, layout)
    return plan


def dense_plan(layout: ModelLayout) -> PruningPlan:
    """The plan that keeps everything: the baseline goes the same way as what is compared with it."""
    return plan_of_alphas(layout, {}, method="dense")


def validate_plan(plan: PruningPlan, layout: ModelLayout) -> None:
    """Check a plan against the model that it is to be applied to.

    Raises:
        PlanError: it is meant for another model, or asks for something that can't be built.
    """
    if not layout.is_dense:
        raise PlanError(
            where="the model", expected="a dense checkpoint", found="a pruned one", fix="plan from the dense model"
        )
    wanted, actual = plan.model, ModelIdentity.of(layout)
    if wanted != actual:
        differing = [name for name in ModelIdentity.model_fields if getattr(wanted, name) != getattr(actual, name)]
        raise PlanError(
            where="the plan",
            expected="a plan made for this model: " + ", ".join(f"{n} {getattr(actual, n)}" for n in differing),
            found=", ".join(f"{n} {getattr(wanted, n)}" for n in differing),
            fix="make a plan for this model, or pass the model that the plan was made for",
        )
    if len(plan.attention) != layout.num_layers:
        raise PlanError(
            where="the plan",
            expected=f"an entry for each of {layout.num_layers} layers",
            found=f"{len(plan.attention)} entries",
            fix="list every layer, `keep` included",
        )
    if isinstance(plan.attention[0], ValueOnly | Skip):
        others = "every layer" if len(plan.alphas) == layout.num_layers else "layer 0"
        raise PlanError(
            where="layer 0",
            expected="attention in layer 0 (keep or keep_heads): tokens must be mixed at least once, and the length "
            "of the KV cache is read from the first layer",
            found=f"a plan that removes it from {others}",
            fix="keep layer 0 and prune higher layers",
        )
    for index, layer in enumerate(plan.attention):
        if isinstance(layer, KeepHeads):
            _validate_heads(index, layer, layout)


def _validate_heads(index: int, layer: KeepHeads, layout: ModelLayout) -> None:
    where = f"layer {index}, query_heads"
    if layer.query_heads[-1] >= layout.num_heads:
        raise PlanError(
            where=where,
            expected=f"heads from 0 to {layout.num_heads - 1}",
            found=f"head {layer.query_heads[-1]}",
            fix="choose heads that the layer has",
        )
    per_group = Counter(head // layout.heads_per_group for head in layer.query_heads)
    if len(set(per_group.values())) > 1:
        counts = ", ".join(f"group {group} keeps {count}" for group, count in sorted(per_group.items()))
        raise PlanError(
            where=where,
            expected="the same number of query heads in each KV group that stays (grouped-query attention)",
            found=counts,
            fix=f"keep equally many of each group's {layout.heads_per_group} heads, or drop a group entirely",
        )
