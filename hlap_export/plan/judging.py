"""How good a planned model is on windows that nothing was fitted on and nothing chosen by.

Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hlap_export.checkpoint.decoder import Decoder
from hlap_export.families import Family
from hlap_export.plan.calibration import Windows
from hlap_export.plan.layer_halves import Tensors, after_layer, tensors_of_layer
from hlap_export.plan.pruning_plan import PruningPlan

# Half the width of a 95 % interval in standard errors, for the number of windows that it takes to tell anything.
STANDARD_ERRORS = 1.96


@torch.no_grad()
def window_losses(
    decoder: Decoder, family: Family, plan: PruningPlan, fitted: Tensors, windows: Windows
) -> tuple[float, ...]:
    """Nats per token of each window, layer by layer through the planned model.

    Args:
        decoder: the dense model.
        family: its family.
        plan: what becomes of its layers.
        fitted: the weights of the parts that the plan fits.
        windows: as many at once go through the layers as the decoder has memory for.
    """
    losses, batches = list[float](), list(windows.batches())
    at_once = decoder.batches_at_once(windows.batch, copies=1)
    for start in range(0, len(batches), at_once):
        chunk = batches[start : start + at_once]
        states = [decoder.at_rest(decoder.embed(windows.inputs[rows])) for rows in chunk]
        for index in range(decoder.num_layers):
            own = tensors_of_layer(fitted, index)
            with decoder.layer(index) as layer:
                for which, h_NTD in enumerate(states):
                    states[which] = decoder.at_rest(after_layer(layer, family, plan, own, h_NTD))
        single = [h_NTD[None] for state in states for h_NTD in state]
        targets = [target_T[None] for rows in chunk for target_T in windows.targets[rows]]
        losses += decoder.head.losses_nats(single, targets)
    return tuple(loss / windows.targets.shape[1] for loss in losses)


@dataclass(frozen=True, kw_only=True, slots=True)
class Increase:
    """How much higher a loss is than the dense model's, in nats per token, with its 95 % interval."""

    perplexity: float
    gap_nats: float
    gap_nats_low: float
    gap_nats_high: float


def increase_of(dense: Sequence[float], pruned: Sequence[float]) -> Increase:
    """Compare two models' losses, nats per token, window by window.

    The windows differ far more from each other than the two models do on one of them, so the interval is that of the
    mean difference.
    """
    differences = [after - before for before, after in zip(dense, pruned, strict=True)]
    mean = statistics.fmean(differences)
    error = STANDARD_ERRORS * statistics.stdev(differences) / math.sqrt(len(differences))
    return Increase(
        perplexity=math.exp(statistics.fmean(pruned)),
        gap_nats=mean,
        gap_nats_low=mean - error,
        gap_nats_high=mean + error,
    )
