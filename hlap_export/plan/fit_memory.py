"""How much memory a fit takes, from shapes alone: what budgets count, and what is left free of weights for it."""

from __future__ import annotations

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.layer_plan import Refit

FLOAT64_BYTES = 8
# Matrices at once: sums over the windows fitted on and held back, both about their means, or else a ridge's solution;
# beside them an eigendecomposition with its workspace.
OF_INPUTS, WITH_OUTPUTS = 10, 4


def fit_bytes(layout: ModelLayout, refit: Refit) -> int:
    """The most that the sums and the solution of one part take.

    Args:
        layout: the dense model's.
        refit: what is fitted anew beside the maps; gains of norms take next to nothing.
    """
    hidden, inputs = layout.hidden_size, layout.hidden_size
    if refit in ("attention", "both") and not layout.family.has_post_norms:
        inputs = max(inputs, layout.num_heads * layout.head_dim)
    if refit in ("mlp", "both") and not layout.family.has_post_norms:
        inputs = max(inputs, layout.intermediate_size)
    return FLOAT64_BYTES * (OF_INPUTS * inputs * inputs + WITH_OUTPUTS * inputs * hidden)
