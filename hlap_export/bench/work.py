"""What a step must compute and move at the least, counted from shapes.

Bytes are the weights, read once, and the cache: what a decode step waits for. FLOPs are the multiplications and
additions of matrix products: what a prefill waits for. Activations, norms and the like aren't counted.

Where only the last token's logits are asked for, whatever follows the last attention is needed for that token alone: in
a model whose top layers keep but their values, that is all of those layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.bench.report import Phase
from hlap_export.checkpoint import LayerAttention, ModelLayout
from hlap_export.counting import BYTES, QUANTISED_BYTES, embedding, layer_matrices


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What one step costs at the least."""

    flops: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """What is timed: `num_tokens` of a prompt, or one token after as many, in each of `batch` rows."""

    phase: Phase
    num_tokens: int
    batch: int = 1

    @property
    def new_tokens(self) -> int:
        """Tokens that one step adds to each row."""
        return self.num_tokens if self.phase == "prefill" else 1

    @property
    def past_tokens(self) -> int:
        """Tokens in each row's cache before the step."""
        return 0 if self.phase == "prefill" else self.num_tokens


def step_work(layout: ModelLayout, point: Point, *, dtype: str, all_logits: bool = False) -> Work:
    """Count one step.

    Args:
        layout: of the model.
        point: the step.
        dtype: of the weights; beside quantised ones the cache is in float32.
        all_logits: whether a prefill is to give the logits of every token, or of the last alone.
    """
    new, past = point.new_tokens, point.past_tokens
    mixing, following = _values_by_last_attention(layout)
    products = 2 * new * mixing + 2 * (new if all_logits else 1) * following
    scores = sum(
        4 * layer.num_heads * layout.head_dim * _pairs(new, past, _window(layout, layer))
        for layer in layout.cached_layers
    )
    cached = sum(
        2 * layer.num_kv_heads * layout.head_dim * (_read(new, past, _window(layout, layer)) + new)
        for layer in layout.cached_layers
    )
    cache_bytes = BYTES["float32" if dtype in QUANTISED_BYTES else dtype]
    return Work(
        flops=point.batch * (products + scores),
        bytes=int((mixing + following) * BYTES[dtype] + point.batch * cached * cache_bytes),
    )


def _values_by_last_attention(layout: ModelLayout) -> tuple[int, int]:
    """Weights that come before the end of the last attention, and those after it: its output, MLPs, head."""
    last = layout.cached_layers[-1]
    output = last.num_heads * layout.head_dim * layout.hidden_size
    mlp = 3 * layout.intermediate_size * layout.hidden_size if last.has_mlp else 0
    values = [sum(matrix.num_values for matrix in layer_matrices(layout, layer)) for layer in layout.layers]
    following = output + mlp + sum(values[last.index + 1 :]) + embedding(layout).num_values
    return sum(values) + embedding(layout).num_values - following, following


def _window(layout: ModelLayout, layer: LayerAttention) -> int | None:
    """How many tokens, itself included, a token attends to in this layer; None for all before it."""
    is_sliding = layout.layer_types is None or layout.layer_types[layer.index] == "sliding_attention"
    return layout.sliding_window if is_sliding else None


def _pairs(new: int, past: int, window: int | None) -> int:
    """Pairs of a new token and one that it attends to."""
    growing = new if window is None else min(new, max(0, window - past))
    return growing * past + growing * (growing + 1) // 2 + (new - growing) * (window or 0)


def _read(new: int, past: int, window: int | None) -> int:
    """Tokens whose keys and values are read."""
    return new + (past if window is None else min(past, window - 1))
