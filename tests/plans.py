"""Plans for the tiny models: a suffix as HARP makes it, holes in the middle, fewer heads, missing MLPs, and all of it.

Those of `FITTED` hold fitted parts, whose weights `save_tiny_fitted` makes up.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.digests import file_sha256
from hlap_export.plan.pruning_plan import (
    FittedFile,
    Keep,
    KeepHeads,
    Linear,
    MlpPlan,
    ModelIdentity,
    PruningPlan,
    RefitAttention,
    RefitMlp,
    Skip,
    SkipMlp,
    ValueOnly,
)
from hlap_export.plan.side_file import fitted_shapes

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
    "blocks": (Keep(), Skip(), Skip(), Keep()),
}
FITTED = {
    "linear": (
        Keep(),
        Linear(form="low_rank", rank=5),
        Linear(form="full", rank=48),
        Linear(form="output", rank=32),
    ),
    "refitted": (Keep(), Linear(form="output", rank=32), RefitAttention(), ValueOnly(alpha=0.5)),
}
MLP: dict[str, dict[int, MlpPlan]] = {
    "blocks": {0: SkipMlp(), 1: SkipMlp(), 2: SkipMlp()},
    "linear": {3: SkipMlp()},
    "refitted": {1: RefitMlp(), 2: RefitMlp()},
}


def tiny_plan(name: str, layout: ModelLayout) -> PruningPlan:
    attention = (ATTENTION | FITTED)[name]
    return PruningPlan(method=name, model=ModelIdentity.of(layout), attention=attention, mlp=MLP.get(name, {}))


def save_tiny_fitted(plan: PruningPlan, layout: ModelLayout, path: Path) -> PruningPlan:
    """Make up weights for the plan's fitted parts, of the size that trained ones have, and save them."""
    generator = torch.Generator().manual_seed(4)
    weights = {
        name: 0.5 * torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        for name, shape in sorted(fitted_shapes(plan, layout).items())
    }
    save_file(weights, path)
    fitted = FittedFile(sha256=file_sha256(path), size_bytes=path.stat().st_size, parts=())
    return plan.model_copy(update={"fitted": fitted})
