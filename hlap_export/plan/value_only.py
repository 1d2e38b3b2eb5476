"""A dense layer computed as value-only, with any alpha: the layer is linear in it.

Shapes: N windows, T tokens, D hidden, H query heads, K KV heads, E head dim.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from hlap_export.checkpoint.decoder import NO_WEIGHTS, LoadedLayer
from hlap_export.checkpoint.modeling_hlap import AttentionFreeLayer
from hlap_export.families import AlphaTarget, Family


def attention_update(layer: LoadedLayer, family: Family, h_NTD: torch.Tensor) -> torch.Tensor:
    """What a value-only layer with alpha 1 adds to the residual stream: Z, [N, T, D].

    `Z = o_proj(rep(v_proj(norm(h))))`, through the post-attention norm where alpha lands after it.
    """
    block = layer.module
    attention = block.self_attn
    v_NTKE = attention.v_proj(block.input_layernorm(h_NTD)).unflatten(-1, (-1, attention.head_dim))
    v_NTHE = v_NTKE.repeat_interleave(attention.num_key_value_groups, dim=-2)
    update = attention.o_proj(v_NTHE.flatten(-2))
    after_norm = family.alpha_target is AlphaTarget.POST_ATTENTION_NORM
    return block.post_attention_layernorm(update) if after_norm else update


def mlp_half(layer: LoadedLayer, h_NTD: torch.Tensor, weights: Mapping[str, torch.Tensor] = NO_WEIGHTS) -> torch.Tensor:
    """The rest of the layer, after its attention: [N, T, D]; `weights` are others than its own, by name."""
    return torch.func.functional_call(AttentionFreeLayer(layer.module), dict(weights), (h_NTD,))


def value_only(layer: LoadedLayer, family: Family, h_NTD: torch.Tensor, alpha: float) -> torch.Tensor:
    """The residual stream [N, T, D] after the layer with this alpha."""
    h_NTD = h_NTD.to(layer.device)
    if alpha:
        h_NTD = torch.add(h_NTD, attention_update(layer, family, h_NTD), alpha=alpha)
    return mlp_half(layer, h_NTD)
