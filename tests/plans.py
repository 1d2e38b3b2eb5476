"""Plans for the tiny models: a suffix as HARP makes it, holes in the middle, fewer heads, and all of it mixed."""

from __future__ import annotations

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.pruning_plan import Keep, KeepHeads, ModelIdentity, PruningPlan, Skip, ValueOnly

# The tiny models have 4 layers of 6 query heads in 2 KV groups (0-2 and 3-5).
ATTENTION = {
    "dense": (Keep(), Keep(), Keep(), Keep()),
    "suffix": (Keep(), Keep(), Skip(), ValueOnly(alpha=0.3)),
    "holes": (Keep(), ValueOnly(alpha=1.0), Skip(), Keep()),
    "partial_heads": (
        KeepHeads(query_heads=(0, 2, 3, 5)),
        KeepHeads(query_heads=(3, 4, 5)),
        Keep(),
        KeepHeads(query_heads=(1,)),
    ),
    "mixed": (KeepHeads(query_heads=(1, 4)), ValueOnly(alpha=0.7), KeepHeads(query_heads=(4, 5)), Skip()),
}


def tiny_plan(name: str, layout: ModelLayout) -> PruningPlan:
    return PruningPlan(method=name, model=ModelIdentity.of(layout), attention=ATTENTION[name])
