"""The pruning plan: what each layer becomes, as versioned JSON; fitted weights are in a side file beside it.

Layers count from 0 at the embedding. Illegal states can't be written: alpha 0 *is* `skip`, kept heads are a
non-empty set, and layer 0 keeps its attention because the KV cache's length is read from it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from hlap_export.artifacts import write_text_whole
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.plan.curve import Curve
from hlap_export.plan.layer_plan import (
    MAX_ALPHA,
    AttentionPlan,
    Keep,
    KeepHeads,
    Linear,
    LinearForm,
    MlpPlan,
    Refit,
    RefitAttention,
    RefitMlp,
    Skip,
    SkipMlp,
    Strict,
    ValueOnly,
    linear_of,
)
from hlap_export.plan.records import AlphaScore, FittedFile, FittedPart, LayerSearch, SearchRecord, TextWindows

__all__ = [
    "AlphaScore",
    "AttentionPlan",
    "FittedFile",
    "FittedPart",
    "Keep",
    "KeepHeads",
    "LayerSearch",
    "Linear",
    "LinearForm",
    "MlpPlan",
    "ModelIdentity",
    "PruningPlan",
    "RefitAttention",
    "RefitMlp",
    "SearchRecord",
    "Skip",
    "SkipMlp",
    "TextWindows",
    "ValueOnly",
    "attention_of_alpha",
    "dense_plan",
    "linear_of",
    "load_plan",
    "plan_of_alphas",
    "refit_kept",
    "validate_plan",
]


class ModelIdentity(Strict):
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


class PruningPlan(Strict):
    """What happens to each layer; the only thing that planners produce.

    Attributes:
        mlp: the MLPs that change, by layer; all others stay as they are.
        fitted: the weights of linear layers and refitted MLPs; None where there are none, or none yet.
        curves: what each further removal would cost and save; the method's own first, HARP's beside it.
    """

    format: Literal["hlap-export/plan/1"] = "hlap-export/plan/1"
    method: str
    model: ModelIdentity
    attention: tuple[AttentionPlan, ...]
    mlp: dict[int, MlpPlan] = Field(default_factory=dict[int, MlpPlan])
    fitted: FittedFile | None = None
    search: SearchRecord | None = None
    curves: tuple[Curve, ...] = ()

    @property
    def alphas(self) -> dict[int, float]:
        """Alpha of each layer that loses its attention, by layer index; 0.0 where it is skipped."""
        return {
            index: layer.alpha if isinstance(layer, ValueOnly) else 0.0
            for index, layer in enumerate(self.attention)
            if isinstance(layer, ValueOnly | Skip)
        }

    @property
    def fits(self) -> bool:
        """Whether the plan has parts whose weights are in a side file."""
        return any(
            isinstance(part, Linear | RefitAttention | RefitMlp) for part in (*self.attention, *self.mlp.values())
        )

    @property
    def first_changed(self) -> int:
        """The lowest layer that isn't as in the dense model; the number of layers where all are."""
        changed = [index for index, attention in enumerate(self.attention) if not isinstance(attention, Keep)]
        return min([*changed, *self.mlp], default=len(self.attention))

    def to_json(self) -> str:
        return self.model_dump_json(indent=2) + "\n"

    def save(self, path: Path) -> None:
        write_text_whole(path, self.to_json())


def refit_kept(plan: PruningPlan, refit: Refit) -> PruningPlan:
    """The same plan with what stays above the first change fitted anew, to make up for what was lost.

    That is the attention that stays, the MLPs that stay (of the layer that changes first as well), or both.
    """
    first, attention, mlp = plan.first_changed, plan.attention, plan.mlp
    if refit in ("attention", "both"):
        attention = tuple(
            RefitAttention() if isinstance(attention, Keep) and index > first else attention
            for index, attention in enumerate(plan.attention)
        )
    if refit in ("mlp", "both"):
        mlp = {index: plan.mlp.get(index, RefitMlp()) for index in range(first, len(plan.attention))}
    return plan.model_copy(update={"attention": attention, "mlp": mlp})


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
    if isinstance(plan.attention[0], ValueOnly | Linear | Skip):
        attending = any(isinstance(attention, Keep | RefitAttention | KeepHeads) for attention in plan.attention)
        others = "layer 0" if attending else "every layer"
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
        elif isinstance(layer, Linear):
            _validate_rank(index, layer, layout)
    if unknown := [index for index in plan.mlp if not 0 <= index < layout.num_layers]:
        raise PlanError(
            where=f"mlp of layer {unknown[0]}",
            expected=f"a layer from 0 to {layout.num_layers - 1}",
            found=f"a model of {layout.num_layers} layers",
            fix="name layers that the model has",
        )


def _validate_rank(index: int, layer: Linear, layout: ModelLayout) -> None:
    hidden, values = layout.hidden_size, layout.num_kv_heads * layout.head_dim
    allowed = {"output": (values, values), "full": (hidden, hidden), "low_rank": (1, hidden - 1)}
    low, high = allowed[layer.form]
    if not low <= layer.rank <= high:
        raise PlanError(
            where=f"layer {index}, rank of a linear map of form {layer.form}",
            expected=str(low) if low == high else f"{low} to {high}",
            found=str(layer.rank),
            fix="correct the rank, or choose another form",
        )


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
