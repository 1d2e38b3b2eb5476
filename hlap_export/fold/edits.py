"""What a plan does to a checkpoint's tensors, as functions from the dense tensors to the pruned ones.

An edit computes one output tensor; it reads the tensors that it needs by name, dense or fitted ones (`side_file.py`),
so a caller can stream: nothing is computed before it is written, and running the edits on meta tensors gives the
output shapes for free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.families import AlphaTarget
from hlap_export.fold.attention import (
    scale_norm_gain,
    select_head_inputs,
    select_heads,
    sum_over_groups,
    value_bias_after_output,
)
from hlap_export.plan.pruning_plan import (
    AttentionPlan,
    Keep,
    KeepHeads,
    Linear,
    MlpPlan,
    PruningPlan,
    RefitAttention,
    RefitMlp,
    Skip,
    SkipMlp,
)
from hlap_export.plan.side_file import fitted_name

Read = Callable[[str], torch.Tensor]
Edit = Callable[[Read], torch.Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerEdits:
    """Changes to one decoder layer; tensors that are neither edited nor below a removed prefix are copied.

    Attributes:
        edits: output tensor name -> how to compute it.
        removed: prefixes of tensor names that go, unless an edit or `kept` names them.
        kept: names below a removed prefix that stay as they are.
    """

    edits: dict[str, Edit] = field(default_factory=dict[str, Edit])
    removed: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    def removes(self, name: str) -> bool:
        return name.startswith(self.removed) and name not in self.edits and name not in self.kept


def layer_edits(plan: PruningPlan, layout: ModelLayout) -> tuple[LayerEdits, ...]:
    """The edits of every layer, in order."""
    return tuple(
        _joined(_attention_edits(attention, layout, index), _mlp_edits(plan.mlp.get(index), layout, index))
        for index, attention in enumerate(plan.attention)
    )


def _joined(attention: LayerEdits, mlp: LayerEdits) -> LayerEdits:
    return LayerEdits(
        edits=attention.edits | mlp.edits,
        removed=attention.removed + mlp.removed,
        kept=attention.kept + mlp.kept,
    )


def _attention_edits(attention: AttentionPlan, layout: ModelLayout, index: int) -> LayerEdits:
    match attention:
        case Keep():
            return LayerEdits()
        case KeepHeads():
            return _keep_heads(attention, layout, index)
        case RefitAttention():
            last = "post_attention_layernorm" if layout.family.has_post_norms else "self_attn.o_proj"
            return LayerEdits(edits={f"model.layers.{index}.{last}.weight": _fitted(index, "attention.weight")})
        case Linear():
            return _linear(attention, layout, index)
        case Skip():
            return _skip(layout, index)
        case _:
            return _value_only(attention.alpha, layout, index)


def _mlp_edits(mlp: MlpPlan | None, layout: ModelLayout, index: int) -> LayerEdits:
    """The last weight of the MLP half from the side file, or nothing left of that half."""
    prefix, has_post_norms = f"model.layers.{index}.", layout.family.has_post_norms
    norms = (
        ("pre_feedforward_layernorm", "post_feedforward_layernorm") if has_post_norms else ("post_attention_layernorm",)
    )
    match mlp:
        case RefitMlp():
            last = f"{prefix}{norms[-1] if has_post_norms else 'mlp.down_proj'}.weight"
            return LayerEdits(edits={last: _fitted(index, "mlp.weight")})
        case SkipMlp():
            return LayerEdits(removed=(f"{prefix}mlp.", *(f"{prefix}{norm}." for norm in norms)))
        case None:
            return LayerEdits()


def _fitted(index: int, part: str) -> Edit:
    """A tensor of the side file as it is."""
    return lambda read: read(fitted_name(index, part))


def _linear(attention: Linear, layout: ModelLayout, index: int) -> LayerEdits:
    """The fitted matrices instead of the dense projections, and of the norm that may follow the attention."""
    prefix = f"model.layers.{index}."
    own = f"{prefix}self_attn."
    parts = ["o_proj.weight", "o_proj.bias"] + (["v_proj.weight"] if attention.form == "low_rank" else [])
    removed = [own] + ([f"{prefix}post_attention_layernorm."] if layout.family.has_post_norms else [])
    return LayerEdits(
        edits={f"{own}{part}": _fitted(index, part) for part in parts},
        removed=tuple(removed),
        kept=(f"{own}v_proj.weight",) if attention.form == "output" else (),
    )


def _skip(layout: ModelLayout, index: int) -> LayerEdits:
    """Nothing of the attention block stays: projections, its input norm, and Gemma-2's norm after it."""
    prefix = f"model.layers.{index}."
    norms = [f"{prefix}input_layernorm."]
    if layout.family.alpha_target is AlphaTarget.POST_ATTENTION_NORM:
        norms.append(f"{prefix}post_attention_layernorm.")
    return LayerEdits(removed=(f"{prefix}self_attn.", *norms))


def _value_only(alpha: float, layout: ModelLayout, index: int) -> LayerEdits:
    """`alpha (rep(x W_v^T + b_v) W_o^T + b_o) = x W_v^T W'^T + b'` with alpha and the group sum inside W' and b'."""
    attention = f"model.layers.{index}.self_attn."
    w_o, b_o, b_v = f"{attention}o_proj.weight", f"{attention}o_proj.bias", f"{attention}v_proj.bias"
    after_norm = layout.family.alpha_target is AlphaTarget.POST_ATTENTION_NORM
    scale = 1.0 if after_norm else alpha

    def output_weight(read: Read) -> torch.Tensor:
        return scale * sum_over_groups(read(w_o), layout.num_heads, layout.num_kv_heads)

    def output_bias(read: Read) -> torch.Tensor:
        parts: list[torch.Tensor] = []
        if layout.biases.output:
            parts.append(scale * read(b_o).double())
        if layout.biases.qkv:
            parts.append(value_bias_after_output(output_weight(read), read(b_v)))
        return torch.stack(parts).sum(dim=0)

    edits: dict[str, Edit] = {w_o: output_weight}
    if layout.biases.qkv or layout.biases.output:
        edits[b_o] = output_bias
    if after_norm:
        gain = f"model.layers.{index}.post_attention_layernorm.weight"
        edits[gain] = lambda read: scale_norm_gain(read(gain), alpha)
    return LayerEdits(edits=edits, removed=(attention,), kept=(f"{attention}v_proj.weight",))


def _keep_heads(plan: KeepHeads, layout: ModelLayout, index: int) -> LayerEdits:
    """Rows of q, k, v and columns of o_proj for the heads and groups that stay."""
    attention = f"model.layers.{index}.self_attn."
    groups = plan.kv_groups(layout.heads_per_group)
    heads_of = {"q_proj": plan.query_heads, "k_proj": groups, "v_proj": groups}

    def rows(name: str, heads: tuple[int, ...]) -> Edit:
        return lambda read: select_heads(read(name), heads, layout.head_dim)

    edits: dict[str, Edit] = {}
    for projection, heads in heads_of.items():
        for part in ("weight", "bias") if layout.biases.qkv else ("weight",):
            edits[f"{attention}{projection}.{part}"] = rows(f"{attention}{projection}.{part}", heads)
    w_o = f"{attention}o_proj.weight"
    edits[w_o] = lambda read: select_head_inputs(read(w_o), plan.query_heads, layout.head_dim)
    return LayerEdits(edits=edits)
