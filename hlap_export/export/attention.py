"""Attention as one traced node: what a flavour makes of it is decided by its passes, not by the tracer.

While a model is traced, its attention and its masks go through the two functions below, which `transformers` calls
by name. Attention becomes a single `hlap::Attention` node; the `portable` passes lower it to plain ONNX ops, and a
flavour with an attention operator of its own can map the node to that instead of recognising a pattern.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

TRACED_ATTENTION = "hlap_traced"
"""Name under which transformers' attention and mask interfaces find the functions below."""


@contextmanager
def attention_traced_as_node(model: nn.Module) -> Generator[None]:
    """Route the model's attention through `hlap::Attention` nodes inside the block."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    cast(Any, AttentionInterface).register(TRACED_ATTENTION, traced_attention)
    cast(Any, AttentionMaskInterface).register(TRACED_ATTENTION, additive_mask)
    config = cast(Any, model.config)
    before = config._attn_implementation
    config._attn_implementation = TRACED_ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def traced_attention(  # noqa: PLR0913  the signature is transformers'
    module: nn.Module,
    query_BHTE: torch.Tensor,
    key_BKSE: torch.Tensor,
    value_BKSE: torch.Tensor,
    mask_B1TS: torch.Tensor,
    *,
    scaling: float,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Stand in for attention during the trace: one `hlap::Attention` node, [B, T, H, E] after a transpose.

    `sliding_window` (0: none) is already in the mask; the attribute is for flavours whose operator has a window.
    """
    context_BHTE = torch.onnx.ops.symbolic(
        "hlap::Attention",
        (query_BHTE, key_BKSE, value_BKSE, mask_B1TS),
        {"scale": float(scaling), "softcap": float(softcap or 0.0), "sliding_window": int(sliding_window or 0)},
        dtype=query_BHTE.dtype,
        shape=query_BHTE.shape,
        version=1,
    )
    return context_BHTE.transpose(1, 2), None


def additive_mask(  # noqa: PLR0913  the signature is transformers'
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int,
    attention_mask: torch.Tensor,
    mask_function: Callable[..., torch.Tensor],
    dtype: torch.dtype,
    device: torch.device,
    **_: Any,
) -> torch.Tensor:
    """The mask of one layer kind, added to the scores: 0 where a query sees a key, else very low. [B, 1, T, S].

    "Very low" is half of the dtype's minimum: a finite score added to it stays finite (in float16, the minimum
    itself plus -17 rounds to -inf), so that a row which sees nothing, all padding, is a softmax over finite numbers.
    """
    query_T1 = (torch.arange(q_length, device=device) + q_offset)[:, None]
    key_1S = torch.arange(kv_length, device=device)[None, :]
    visible_TS = mask_function(0, 0, query_T1, key_1S)
    visible_B1TS = visible_TS[None, None, :, :] & attention_mask[:, None, None, :]
    hidden = torch.full((), torch.finfo(dtype).min / 2, dtype=dtype, device=device)
    return torch.where(visible_B1TS, torch.zeros((), dtype=dtype, device=device), hidden)
