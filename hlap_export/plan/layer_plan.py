"""What can become of a layer: of its attention, and of its MLP. Illegal states can't be written.

Shapes: D hidden, K KV heads, E head dim, F mlp.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from hlap_export.checkpoint.layout import ModelLayout

MAX_ALPHA = 1.0


class Strict(BaseModel):
    """A stored value: unknown keys are errors, and nothing changes after it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Keep(Strict):
    """The attention stays as it is."""

    kind: Literal["keep"] = "keep"


class RefitAttention(Strict):
    """The attention keeps its shape, and the last weight before the residual is fitted anew.

    That is `o_proj`, or the gain of the norm that follows it where a family has one. Layers above a changed one can
    make up for a part of what it lost, at no cost.
    """

    kind: Literal["refit"] = "refit"


class KeepHeads(Strict):
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


class ValueOnly(Strict):
    """Each token attends only to itself: `x + alpha * o_proj(rep(v_proj(norm(x))))` (HARP, arXiv 2507.01900)."""

    kind: Literal["value_only"] = "value_only"
    alpha: Annotated[float, Field(gt=0, le=MAX_ALPHA)]


class Skip(Strict):
    """No attention at all: alpha 0."""

    kind: Literal["skip"] = "skip"


LinearForm = Literal["output", "full", "low_rank"]


class Linear(Strict):
    """A linear map of the normalised input, fitted to the attention: `x + W norm(x) + b`.

    `norm` is the layer's own input norm; where another norm follows the attention, it goes as well. The weights are
    in the side file (`FittedFile`).

    Attributes:
        form: "output": `W = O V` with the dense value projection V [K*E, D] and O fitted, the shape of `value_only`;
            "full": any W [D, D]; "low_rank": `W = O V`, both fitted.
        rank: rows of V; D for a full matrix.
    """

    kind: Literal["linear"] = "linear"
    form: LinearForm
    rank: Annotated[int, Field(gt=0)]


AttentionPlan = Annotated[Keep | RefitAttention | KeepHeads | ValueOnly | Linear | Skip, Field(discriminator="kind")]


class RefitMlp(Strict):
    """The MLP keeps its shape, and the last weight before the residual is fitted anew.

    That is `down_proj`, or the gain of the norm that follows it where a family has one.
    """

    kind: Literal["refit"] = "refit"


class SkipMlp(Strict):
    """The MLP half of the layer goes, its norms included."""

    kind: Literal["skip"] = "skip"


Part = Literal["attention", "mlp"]
"""A half of a layer."""

Refit = Literal["attention", "mlp", "both", "none"]
"""Which halves that stay are fitted anew."""

MlpPlan = Annotated[RefitMlp | SkipMlp, Field(discriminator="kind")]


def linear_of(form: LinearForm, layout: ModelLayout, rank: int | None = None) -> Linear:
    """A linear map of this form in a model of this layout; `rank` is for the form "low_rank" alone."""
    ranks = {"output": layout.num_kv_heads * layout.head_dim, "full": layout.hidden_size, "low_rank": rank}
    found = ranks[form]
    assert found is not None and (rank is None or form == "low_rank")
    return Linear(form=form, rank=found)
