"""What differs between architectures, as data: everything else in the package is family-agnostic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class AlphaTarget(Enum):
    """The tensor that a layer's rescale factor alpha is folded into."""

    OUTPUT_PROJECTION = "o_proj"
    """`x + alpha * O`: alpha multiplies o_proj's weight and bias."""

    POST_ATTENTION_NORM = "post_attention_layernorm"
    """`x + alpha * RMSNorm(O)` with gain `1 + w`: alpha before the norm would cancel, so `w' = alpha (1 + w) - 1`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Biases:
    """Which attention projections carry a bias."""

    qkv: bool
    output: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """One decoder architecture.

    All supported families name their modules alike (`model.layers.{i}.self_attn.{q,k,v,o}_proj`, `mlp.*`); what
    they don't share is here.

    Attributes:
        model_type: `model_type` in the dense checkpoint's config.json.
        config_class: the stock configuration class in `transformers`.
        model_class: the stock causal-LM class in `transformers`.
        alpha_target: where alpha is folded.
        query_key_norms: whether q and k pass a per-head RMSNorm (`q_norm`, `k_norm`), dropped with them.
        fixed_biases: the projections' biases where the architecture fixes them; None where `attention_bias` in
            the config decides for all four.
    """

    model_type: str
    config_class: str
    model_class: str
    alpha_target: AlphaTarget = AlphaTarget.OUTPUT_PROJECTION
    query_key_norms: bool = False
    fixed_biases: Biases | None = None

    @property
    def pruned_model_type(self) -> str:
        """`model_type` of a pruned checkpoint; a name of its own, so that no stock class loads it by mistake."""
        return f"hlap_{self.model_type}"

    @property
    def has_post_norms(self) -> bool:
        """Whether a norm follows the attention and another the MLP, before each joins the residual stream."""
        return self.alpha_target is AlphaTarget.POST_ATTENTION_NORM

    def biases(self, config: Mapping[str, Any]) -> Biases:
        """The attention biases of a model with this config.json."""
        if self.fixed_biases is not None:
            return self.fixed_biases
        return Biases(qkv=bool(config.get("attention_bias")), output=bool(config.get("attention_bias")))

    def query_key_tensors(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Tensors below `self_attn` that serve only to compare queries with keys."""
        projections = [f"{side}_proj.weight" for side in "qk"]
        if self.biases(config).qkv:
            projections += [f"{side}_proj.bias" for side in "qk"]
        norms = [f"{side}_norm.weight" for side in "qk"] if self.query_key_norms else []
        return (*projections, *norms)
