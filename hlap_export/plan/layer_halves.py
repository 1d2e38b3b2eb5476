"""The halves of one decoder layer as a plan changes them, computed on the dense layer's weights.

Shapes: N windows, T tokens, D hidden, F mlp, H query heads, E head dim.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from hlap_export.checkpoint.decoder import NO_WEIGHTS, LoadedLayer
from hlap_export.families import Family
from hlap_export.plan.layer_plan import MlpPlan, Part
from hlap_export.plan.pruning_plan import (
    AttentionPlan,
    Keep,
    KeepHeads,
    Linear,
    LinearForm,
    PruningPlan,
    RefitAttention,
    RefitMlp,
    SkipMlp,
    ValueOnly,
)
from hlap_export.plan.side_file import fitted_name
from hlap_export.plan.value_only import attention_update, mlp_half

Tensors = Mapping[str, torch.Tensor]


def tensors_of_layer(fitted: Tensors, index: int) -> dict[str, torch.Tensor]:
    """One layer's fitted tensors, in memory."""
    return {name: fitted[name] for name in fitted if name.startswith(fitted_name(index, ""))}


@dataclass(slots=True)
class _Seen:
    """What a module was called with, call by call."""

    inputs: list[torch.Tensor] = field(default_factory=list[torch.Tensor])


@contextmanager
def watching(module: Any) -> Generator[_Seen]:
    """Keep what the module is called with."""
    seen = _Seen()

    def remember(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.inputs.append(inputs[0])

    hook = module.register_forward_pre_hook(remember)
    try:
        yield seen
    finally:
        hook.remove()


def mlp_norm(layer: LoadedLayer, family: Family) -> Any:
    """The norm that the MLP half begins with: what it is called with is the residual stream between the halves."""
    block = layer.module
    return block.pre_feedforward_layernorm if family.has_post_norms else block.post_attention_layernorm


def both_halves(
    layer: LoadedLayer, family: Family, h_NTD: torch.Tensor, weights: Tensors = NO_WEIGHTS
) -> tuple[torch.Tensor, torch.Tensor]:
    """The residual stream [N, T, D] after the layer's attention, and after its MLP; `weights` as of the layer."""
    with watching(mlp_norm(layer, family)) as seen:
        after = layer(h_NTD, weights)
    return seen.inputs[0], after


def last_module(family: Family, part: Part) -> str:
    """The name in a layer of what one half ends with before the residual: its weight is what is fitted anew of it."""
    norms = {"attention": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
    matrices = {"attention": "self_attn.o_proj", "mlp": "mlp.down_proj"}
    return (norms if family.has_post_norms else matrices)[part]


def refitted(layer: LoadedLayer, family: Family, part: Part, fitted: Tensors) -> dict[str, torch.Tensor]:
    """The weight that the side file has in the place of this half's last one; Gemma-2 stores gains less 1, as here."""
    weight = fitted[fitted_name(layer.index, f"{part}.weight")]
    return {f"{last_module(family, part)}.weight": weight.to(layer.device)}


def normed(layer: LoadedLayer, h_NTD: torch.Tensor) -> torch.Tensor:
    """What the layer's attention reads: [N, T, D]."""
    return layer.module.input_layernorm(h_NTD.to(layer.device))


def attention_inputs(layer: LoadedLayer, family: Family, h_NTD: torch.Tensor) -> torch.Tensor:
    """What the last weight of the attention half is multiplied by, for a stream [N, T, D] that enters the layer.

    [N, T, H*E] before o_proj; where a norm follows the attention, [N, T, D] normed but without its gain.
    """
    last = layer.module.get_submodule(last_module(family, "attention"))
    with watching(last) as seen:
        layer(h_NTD)
    return _without_gain(last, seen.inputs[0]) if family.has_post_norms else seen.inputs[0]


def _without_gain(norm: Any, x_NTD: torch.Tensor) -> torch.Tensor:
    """What an RMSNorm multiplies by its gain."""
    x_NTD = x_NTD.float()
    return x_NTD * torch.rsqrt(x_NTD.square().mean(-1, keepdim=True) + norm.eps)


def linear_inputs(layer: LoadedLayer, form: LinearForm, h_NTD: torch.Tensor) -> torch.Tensor:
    """What the fitted o_proj of a linear layer reads, or is fitted to: [N, T, D], or [N, T, K*E] of form "output".

    The dense value bias is left out: the map has a bias of its own.
    """
    x_NTD = normed(layer, h_NTD)
    return x_NTD @ layer.module.self_attn.v_proj.weight.T if form == "output" else x_NTD


def after_attention(
    layer: LoadedLayer, family: Family, attention: AttentionPlan, fitted: Tensors, h_NTD: torch.Tensor
) -> torch.Tensor:
    """The residual stream [N, T, D] after the attention half as planned.

    Args:
        layer: the dense layer.
        family: its family.
        attention: what it becomes.
        fitted: the side file's tensors, where a part of it is fitted.
        h_NTD: what enters the layer.
    """
    h_NTD = h_NTD.to(layer.device)
    match attention:
        case Keep():
            return both_halves(layer, family, h_NTD)[0]
        case RefitAttention():
            return both_halves(layer, family, h_NTD, refitted(layer, family, "attention", fitted))[0]
        case KeepHeads():
            with _heads_alone(layer, attention):
                return both_halves(layer, family, h_NTD)[0]
        case ValueOnly():
            return torch.add(h_NTD, attention_update(layer, family, h_NTD), alpha=attention.alpha)
        case Linear():
            return h_NTD + _linear(layer, attention, fitted, h_NTD)
        case _:
            return h_NTD


def _linear(layer: LoadedLayer, attention: Linear, fitted: Tensors, h_NTD: torch.Tensor) -> torch.Tensor:
    def own(part: str) -> torch.Tensor:
        return fitted[fitted_name(layer.index, part)].to(layer.device)

    x_NTI = linear_inputs(layer, attention.form, h_NTD)
    if attention.form == "low_rank":
        x_NTI = x_NTI @ own("v_proj.weight").T
    return torch.nn.functional.linear(x_NTI, own("o_proj.weight"), own("o_proj.bias"))


@contextmanager
def _heads_alone(layer: LoadedLayer, attention: KeepHeads) -> Generator[None]:
    """Let these query heads alone reach the output projection."""
    attend = layer.module.self_attn
    kept_HE = torch.zeros(attend.o_proj.in_features // attend.head_dim, attend.head_dim, device=layer.device)
    kept_HE[list(attention.query_heads)] = 1

    def mask(_: Any, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return inputs[0] * kept_HE.flatten()

    hook = attend.o_proj.register_forward_pre_hook(mask)
    try:
        yield
    finally:
        hook.remove()


def mlp_inputs(layer: LoadedLayer, family: Family, h_NTD: torch.Tensor) -> torch.Tensor:
    """What the last weight of the MLP half is multiplied by, for a stream [N, T, D] after the attention.

    [N, T, F] before down_proj; where a norm follows the MLP, [N, T, D] normed but without its gain.
    """
    last = layer.module.get_submodule(last_module(family, "mlp"))
    with watching(last) as seen:
        mlp_half(layer, h_NTD)
    return _without_gain(last, seen.inputs[0]) if family.has_post_norms else seen.inputs[0]


def after_mlp(
    layer: LoadedLayer, family: Family, mlp: MlpPlan | None, fitted: Tensors, h_NTD: torch.Tensor
) -> torch.Tensor:
    """The residual stream [N, T, D] after the MLP half as planned; `h_NTD` is the one after the attention."""
    match mlp:
        case SkipMlp():
            return h_NTD
        case RefitMlp():
            return mlp_half(layer, h_NTD, refitted(layer, family, "mlp", fitted))
        case None:
            return mlp_half(layer, h_NTD)


def after_layer(
    layer: LoadedLayer, family: Family, plan: PruningPlan, fitted: Tensors, h_NTD: torch.Tensor
) -> torch.Tensor:
    """The residual stream [N, T, D] after the layer as planned: in one pass where it keeps both halves' shapes."""
    attention, mlp = plan.attention[layer.index], plan.mlp.get(layer.index)
    if isinstance(attention, Keep | RefitAttention) and not isinstance(mlp, SkipMlp):
        weights: dict[str, torch.Tensor] = {}
        if isinstance(attention, RefitAttention):
            weights |= refitted(layer, family, "attention", fitted)
        if isinstance(mlp, RefitMlp):
            weights |= refitted(layer, family, "mlp", fitted)
        return layer(h_NTD, weights)
    between = after_attention(layer, family, attention, fitted, h_NTD)
    return after_mlp(layer, family, mlp, fitted, between)
