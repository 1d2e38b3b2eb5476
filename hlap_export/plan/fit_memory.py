"""How much memory a fit takes, from shapes alone: what budgets count, and what is left free of weights for it."""

from __future__ import annotations

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.layer_plan import Refit
from hlap_export.plan.options import FITTING_METHODS, MethodName, MethodOptions

FLOAT64_BYTES = 8
# Matrices at once: sums over the windows fitted on and held back, both about their means, or else a ridge's solution;
# beside them an eigendecomposition with its workspace.
OF_INPUTS, WITH_OUTPUTS = 10, 4


FLOAT_BYTES = 4
# A weight that is tuned, its gradient, and Adam's two moments.
COPIES_TUNED = 4
WINDOWS_TUNED_AT_ONCE = 8


def tune_bytes(layout: ModelLayout, window_length: int) -> int:
    """What tuning takes: the last weight of every attention and MLP, or a map's, and the windows of one step.

    Args:
        layout: the dense model's.
        window_length: tokens in a window.
    """
    hidden, mlp = layout.hidden_size, layout.intermediate_size
    last_ones = 2 * hidden if layout.family.has_post_norms else (layout.num_heads * layout.head_dim + mlp) * hidden
    full_map = hidden * hidden + hidden  # which no map of a lower rank exceeds
    weights = layout.num_layers * max(last_ones, full_map + mlp * hidden)
    # What entered every layer, and what one layer keeps for its gradient.
    per_token = layout.num_layers * hidden + 2 * (4 * mlp + 8 * hidden)
    return FLOAT_BYTES * (COPIES_TUNED * weights + WINDOWS_TUNED_AT_ONCE * window_length * per_token)


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


def fitting_bytes(layout: ModelLayout, method: MethodName, options: MethodOptions, window_length: int) -> int:
    """What a method fits with beside a layer's own weights; 0 for methods that don't."""
    if method not in FITTING_METHODS:
        return 0
    fits = fit_bytes(layout, options.refit)
    return max(fits, tune_bytes(layout, window_length)) if options.tune_epochs else fits
