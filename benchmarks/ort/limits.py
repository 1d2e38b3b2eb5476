"""What a step must compute and move at the least, counted from shapes: the limit beside a measured ratio.

Bytes are the weights, read once, and the cache: what a decode step waits for. FLOPs are the multiplications and
additions of matrix products: what a prefill waits for. Activations, norms and the like aren't counted.

Where only the last token's logits are asked for, whatever follows the last attention is needed for that token alone: in
a model whose top layers keep but their values, that is all of those layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hlap_export.checkpoint import ModelLayout
from hlap_export.counting import BYTES, embedding, kv_values_per_token, layer_matrices

Phase = Literal["prefill", "decode"]
CACHE_BYTES = 4  # float32, beside quantised weights too


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one step costs at the least."""

    flops: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """Pruned / dense, as counted; `ratio` is the one of the two that the phase is bound by."""

    flops_ratio: float
    bytes_ratio: float
    ratio: float


def step_work(layout: ModelLayout, phase: Phase, num_tokens: int, *, dtype: str, all_logits: bool = False) -> Work:
    """Count one step of batch 1.

    Args:
        layout: of a model without sliding windows.
        phase: a prefill of `num_tokens`, or one token after as many.
        num_tokens: prompt length, or tokens in the cache.
        dtype: of the weights; the cache is in float32.
        all_logits: whether a prefill is to give the logits of every token, or of the last alone.
    """
    assert layout.sliding_window is None, "windows would need their own count of query-key pairs"
    new, past = (num_tokens, 0) if phase == "prefill" else (1, num_tokens)
    mixing, following = _values_by_last_attention(layout)
    pairs = new * past + new * (new + 1) // 2
    heads = sum(layer.num_heads for layer in layout.cached_layers)
    products = 2 * new * mixing + 2 * (new if all_logits else 1) * following
    cached = kv_values_per_token(layout) * (past + new)
    written = kv_values_per_token(layout) * new
    return Work(
        flops=products + 4 * heads * layout.head_dim * pairs,
        bytes=int((mixing + following) * BYTES[dtype]) + (cached + written) * CACHE_BYTES,
    )


def _values_by_last_attention(layout: ModelLayout) -> tuple[int, int]:
    """Weights that come before the end of the last attention, and those after it: its output, MLPs, head."""
    last = layout.cached_layers[-1]
    output = last.num_heads * layout.head_dim * layout.hidden_size
    mlp = 3 * layout.intermediate_size * layout.hidden_size
    values = [sum(matrix.num_values for matrix in layer_matrices(layout, layer)) for layer in layout.layers]
    following = output + mlp + sum(values[last.index + 1 :]) + embedding(layout).num_values
    return sum(values) + embedding(layout).num_values - following, following


def limit(pruned: ModelLayout, dense: ModelLayout, phase: Phase, num_tokens: int, *, dtype: str) -> Limit:
    """How much faster a pruned step can be, if time is what is counted: bytes for decode, FLOPs for prefill."""
    numerator = step_work(pruned, phase, num_tokens, dtype=dtype)
    denominator = step_work(dense, phase, num_tokens, dtype=dtype)
    flops_ratio = numerator.flops / denominator.flops
    bytes_ratio = numerator.bytes / denominator.bytes
    return Limit(
        flops_ratio=flops_ratio,
        bytes_ratio=bytes_ratio,
        ratio=flops_ratio if phase == "prefill" else bytes_ratio,
    )
