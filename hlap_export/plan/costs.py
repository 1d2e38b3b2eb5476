"""What a plan costs at inference, counted from shapes.

A decode step waits for memory: it reads every weight and the cache once. A prefill waits for arithmetic: each weight
once for each token, and each query with its keys and values. Only the last token's logits are asked for, so whatever
follows the last attention is computed for that token alone: the higher the layers that lose their attention, the more
that saves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hlap_export.checkpoint.layout import LayerAttention, ModelLayout
from hlap_export.counting import Model, embedding, kv_values_per_token, layer_matrices, stored_bytes
from hlap_export.plan.layer_plan import AttentionPlan, Keep, KeepHeads, Linear, RefitAttention, Skip, SkipMlp
from hlap_export.plan.pruning_plan import PruningPlan

# What is counted: a prompt of so many tokens, a step after so many; fewer where the model has fewer positions.
PROMPT_TOKENS = 1024
CONTEXT_TOKENS = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a model of some shape takes.

    Attributes:
        weight_bytes: all weights as stored.
        kv_values: that one token adds to the cache.
        prefill_products: multiplications of a prompt of `PROMPT_TOKENS`.
        decode_values: weights and cached values that a step after `CONTEXT_TOKENS` reads.
    """

    weight_bytes: int
    kv_values: int
    prefill_products: int
    decode_values: int


def cost_of(layout: ModelLayout, dtype: str) -> Cost:
    """Count what a model of this layout takes, its weights stored as `dtype`."""
    before, after = _weights_by_last_attention(layout)
    prompt = min(PROMPT_TOKENS, layout.max_positions)
    context = min(CONTEXT_TOKENS, layout.max_positions)
    pairs = sum(2 * layer.num_heads * layout.head_dim * _pairs(layout, layer, prompt) for layer in layout.cached_layers)
    cached = sum(
        2 * layer.num_kv_heads * layout.head_dim * min(context, _reach(layout, layer)) for layer in layout.cached_layers
    )
    return Cost(
        weight_bytes=stored_bytes(Model(layout=layout, dtype=dtype)),
        kv_values=kv_values_per_token(layout),
        prefill_products=prompt * before + after + pairs,
        decode_values=before + after + cached,
    )


def _weights_by_last_attention(layout: ModelLayout) -> tuple[int, int]:
    """Weights up to the queries, keys and values of the last attention; and those after it, with the head's."""
    last = layout.cached_layers[-1]
    weights = [sum(matrix.num_values for matrix in layer_matrices(layout, layer)) for layer in layout.layers]
    output = last.num_heads * layout.head_dim * layout.hidden_size
    mlp = 3 * layout.intermediate_size * layout.hidden_size if last.has_mlp else 0
    after = output + mlp + sum(weights[last.index + 1 :])
    return sum(weights) - after, after + embedding(layout).num_values


def _reach(layout: ModelLayout, layer: LayerAttention) -> int:
    """How many tokens back a layer's queries see."""
    is_global = layout.layer_types is not None and layout.layer_types[layer.index] == "full_attention"
    return layout.max_positions if is_global or layout.sliding_window is None else layout.sliding_window


def _pairs(layout: ModelLayout, layer: LayerAttention, tokens: int) -> int:
    """Queries with the keys that they see, themselves included."""
    reach = min(tokens, _reach(layout, layer))
    return reach * (reach + 1) // 2 + (tokens - reach) * reach


def planned_layout(layout: ModelLayout, plan: PruningPlan) -> ModelLayout:
    """The layout that a dense model of this layout has after the plan."""
    layers = tuple(
        _planned_layer(index, attention, layout, has_mlp=not isinstance(plan.mlp.get(index), SkipMlp))
        for index, attention in enumerate(plan.attention)
    )
    return replace(layout, layers=layers)


def _planned_layer(index: int, attention: AttentionPlan, layout: ModelLayout, *, has_mlp: bool) -> LayerAttention:
    dense = replace(layout.layers[index], has_mlp=has_mlp)
    match attention:
        case Keep() | RefitAttention():
            return dense
        case KeepHeads():
            groups = len(attention.kv_groups(layout.heads_per_group))
            return replace(dense, num_heads=len(attention.query_heads), num_kv_heads=groups)
        case Linear():
            rank = 0 if attention.form == "full" else attention.rank
            return replace(dense, kind="linear", num_heads=0, num_kv_heads=0, linear_rank=rank)
        case Skip():
            return replace(dense, kind="skip", num_heads=0, num_kv_heads=0)
        case _:
            return replace(dense, kind="value_only")
