"""Parameters and KV cache that a plan saves, counted from shapes alone.

The base is the paper's: the weights of the linear layers inside the decoder (no embeddings, head or norms). HARP's
own accounting (arXiv 2507.01900, released code) subtracts Q and K of each pruned layer, and V and O where alpha is
0; folding also shrinks o_proj of a value-only layer to its KV heads, which that accounting doesn't count.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.pruning_plan import Keep, KeepHeads, Linear, PruningPlan, RefitAttention, Skip, SkipMlp


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterCount:
    """Counts of linear weights inside the decoder, and KV heads.

    Attributes:
        base: the dense model's.
        removed: by the paper's accounting, without the fold's own saving.
        removed_folded: with o_proj of value-only layers shrunk from query to KV heads.
        kv_heads: KV heads that the dense model caches, over all layers.
        kv_heads_removed: how many of them the plan removes.
    """

    base: int
    removed: int
    removed_folded: int
    kv_heads: int
    kv_heads_removed: int

    @property
    def removed_ratio(self) -> float:
        return self.removed / self.base

    @property
    def removed_folded_ratio(self) -> float:
        return self.removed_folded / self.base

    @property
    def kv_removed_ratio(self) -> float:
        return self.kv_heads_removed / self.kv_heads

    def as_facts(self) -> dict[str, Any]:
        """The counts and ratios as JSON values."""
        ratios = ("removed_ratio", "removed_folded_ratio", "kv_removed_ratio")
        return asdict(self) | {name: getattr(self, name) for name in ratios}


def count_parameters(layout: ModelLayout, plan: PruningPlan) -> ParameterCount:
    """Count what the plan removes from a dense model of this layout."""
    hidden, head = layout.hidden_size, layout.head_dim
    query = output = hidden * layout.num_heads * head
    key = value = hidden * layout.num_kv_heads * head
    mlp = 3 * hidden * layout.intermediate_size
    removed = removed_folded = kv_heads_removed = 0
    for attention in plan.attention:
        match attention:
            case Keep() | RefitAttention():
                continue
            case KeepHeads():
                heads = layout.num_heads - len(attention.query_heads)
                groups = layout.num_kv_heads - len(attention.kv_groups(layout.heads_per_group))
                lost = 2 * hidden * head * (heads + groups)
                removed, removed_folded = removed + lost, removed_folded + lost
                kv_heads_removed += groups
            case Skip():
                removed += query + key + value + output
                removed_folded += query + key + value + output
                kv_heads_removed += layout.num_kv_heads
            case Linear():
                left = hidden * hidden if attention.form == "full" else 2 * hidden * attention.rank
                # The released accounting knows no fitted maps: value and output count as they are.
                removed += query + key
                removed_folded += query + key + value + output - left
                kv_heads_removed += layout.num_kv_heads
            case _:
                removed += query + key
                removed_folded += query + key + output - hidden * layout.num_kv_heads * head
                kv_heads_removed += layout.num_kv_heads
    gone = mlp * sum(isinstance(changed, SkipMlp) for changed in plan.mlp.values())
    removed, removed_folded = removed + gone, removed_folded + gone
    return ParameterCount(
        base=layout.num_layers * (query + key + value + output + mlp),
        removed=removed,
        removed_folded=removed_folded,
        kv_heads=layout.num_layers * layout.num_kv_heads,
        kv_heads_removed=kv_heads_removed,
    )
