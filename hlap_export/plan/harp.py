"""HARP's search (arXiv 2507.01900, Algorithm 1): from the last layer down, the alpha with the lowest perplexity.

    for layer = L-1 ... L-n:
        alpha[layer] = argmin over the grid of PPL(value-only in layer and above, full attention below)

The naive search runs the whole model for each of the 11 n candidates. Here, a candidate re-runs only what its alpha
changes: the layers below keep full attention, so what enters each searched layer is captured once from the dense
model; the layer's attention output Z doesn't depend on alpha, so it is computed once and `h + alpha Z` varies.

The paper releases neither the search nor its grid; every alpha it published is a multiple of 0.1 below 1, so the
grid is 0.0, 0.1, ..., 1.0. Ties go to the smaller alpha: 0 also drops V and O.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.on_progress import OnProgress, Steps, ignore_progress
from hlap_export.plan.calibration import Calibration, UpperLayers, calibrate
from hlap_export.plan.pruning_plan import (
    AlphaScore,
    LayerSearch,
    PruningPlan,
    SearchRecord,
    TextWindows,
    plan_of_alphas,
)

ALPHA_GRID = tuple(step / 10 for step in range(11))


def default_num_layers(layout: ModelLayout) -> int:
    """A quarter of the layers: what the paper prunes of Llama-3.1-8B and Mistral-7B (8 of 32)."""
    return max(1, layout.num_layers // 4)


def search_harp(
    model: Any,
    layout: ModelLayout,
    windows_NT: torch.Tensor,
    *,
    text: TextWindows,
    num_layers: int,
    on_progress: OnProgress = ignore_progress,
) -> PruningPlan:
    """Search the alphas of the last `num_layers` layers.

    Args:
        model: the dense model, in float32.
        layout: its layout.
        windows_NT: calibration tokens, [N windows, T tokens].
        text: what the windows are, for the record.
        num_layers: how many of the last layers lose attention, 1 to L-1.
        on_progress: called with (steps done, steps in all).

    Raises:
        PlanError: `num_layers` is out of range.
    """
    if not 1 <= num_layers < layout.num_layers:
        raise PlanError(
            where="num_layers",
            expected=f"1 to {layout.num_layers - 1} layers: layer 0 keeps its attention",
            found=str(num_layers),
            fix="prune fewer layers",
        )
    first_layer = layout.num_layers - num_layers
    steps = Steps(len(windows_NT) * (1 + num_layers), on_progress)
    upper = UpperLayers(model, layout.family)
    dense = calibrate(model, upper, windows_NT, first_layer=first_layer, on_windows=steps.advance)

    alphas: dict[int, float] = {}
    searches: list[LayerSearch] = []
    for layer in reversed(range(first_layer, layout.num_layers)):
        curve = _alpha_curve(upper, dense, layer, alphas, steps.advance)
        best = min(curve, key=lambda score: (score.perplexity, score.alpha))
        alphas[layer] = best.alpha
        searches.append(LayerSearch(layer=layer, curve=curve))

    pruned = sorted(alphas)
    record = SearchRecord(
        text=text,
        perplexity_dense=dense.perplexity,
        perplexity_planned=min(score.perplexity for score in searches[-1].curve),
        perplexity_all_ones=_perplexity(upper, dense, dict.fromkeys(pruned, 1.0)),
        perplexity_all_dropped=_perplexity(upper, dense, dict.fromkeys(pruned, 0.0)),
        layers=tuple(searches),
    )
    return plan_of_alphas(layout, alphas, method="harp", search=record)


@torch.inference_mode()
def _alpha_curve(
    upper: UpperLayers, dense: Calibration, layer: int, above: Mapping[int, float], on_windows: Callable[[int], None]
) -> tuple[AlphaScore, ...]:
    """Perplexity for each alpha of `layer`; the layers above have theirs, those below are dense."""
    losses = [0.0] * len(ALPHA_GRID)
    for rows in dense.batches():
        h, targets = dense.layer_inputs[layer][rows], dense.targets[rows]
        z = upper.attention_update(layer, h)
        for index, alpha in enumerate(ALPHA_GRID):
            after_layer = upper.mlp_half(layer, torch.add(h, z, alpha=alpha))
            losses[index] += upper.loss_nats(_run_value_only(upper, after_layer, above), targets)
        on_windows(len(h))
    return tuple(
        AlphaScore(alpha=alpha, perplexity=math.exp(loss / dense.targets.numel()))
        for alpha, loss in zip(ALPHA_GRID, losses, strict=True)
    )


@torch.inference_mode()
def _perplexity(upper: UpperLayers, dense: Calibration, alphas: Mapping[int, float]) -> float:
    """Perplexity with these alphas in the topmost layers."""
    inputs = dense.layer_inputs[min(alphas)]
    loss = sum(
        upper.loss_nats(_run_value_only(upper, inputs[rows], alphas), dense.targets[rows]) for rows in dense.batches()
    )
    return math.exp(loss / dense.targets.numel())


def _run_value_only(upper: UpperLayers, h: torch.Tensor, alphas: Mapping[int, float]) -> torch.Tensor:
    """Run the value-only layers in `alphas`, lowest first."""
    for layer in sorted(alphas):
        if alphas[layer]:
            h = torch.add(h, upper.attention_update(layer, h), alpha=alphas[layer])
        h = upper.mlp_half(layer, h)
    return h
