"""Sums over the calibration windows for a regression: over those to fit, and over those held back to judge the fit.

Shapes: N windows, T tokens, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from hlap_export.checkpoint.decoder import LoadedLayer
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.plan.calibration import Search
from hlap_export.plan.gain import GainMoments
from hlap_export.plan.pruning_plan import LinearForm
from hlap_export.plan.regression import Moments

Sums = TypeVar("Sums", Moments, GainMoments)
InputsAndTargets = Callable[[slice], tuple[torch.Tensor, torch.Tensor]]
"""Inputs [N, T, I] and targets [N, T, O] of a batch of windows."""


class WindowSums:
    """Fills sums batch by batch.

    Args:
        search: whose windows are summed over.
        layout: the dense model's.
        hold_back_every: of so many windows, the last is held back.

    Raises:
        PlanError: there are fewer.
    """

    def __init__(self, search: Search, layout: ModelLayout, hold_back_every: int) -> None:
        self._search, self._layout, self._every = search, layout, hold_back_every
        if len(search.windows.ids) < self._every:
            raise PlanError(
                where="plan.windows, those that are fitted on",
                expected=f"at least {self._every}: one in {self._every} is held back to judge the fit",
                found=str(len(search.windows.ids)),
                fix="take more calibration windows",
            )

    def linear(
        self, layer: LoadedLayer, form: LinearForm, inputs_and_targets: InputsAndTargets
    ) -> tuple[Moments, Moments]:
        """Of what a linear layer reads, and of what its attention should add."""
        layout = self._layout
        num_inputs = layout.num_kv_heads * layout.head_dim if form == "output" else layout.hidden_size
        return self.weight(layer, num_inputs, inputs_and_targets)

    def weight(
        self, layer: LoadedLayer, num_inputs: int, inputs_and_targets: InputsAndTargets
    ) -> tuple[Moments, Moments]:
        """Of what a matrix with so many inputs reads, and of what it should add to the residual stream."""
        size, device = self._layout.hidden_size, layer.device
        sums = Moments(num_inputs, size, device), Moments(num_inputs, size, device)
        return self._fill(sums, inputs_and_targets)

    def gain(self, layer: LoadedLayer, inputs_and_targets: InputsAndTargets) -> tuple[GainMoments, GainMoments]:
        """Of what the gain of a norm is multiplied by, and of what it should add to the residual stream."""
        size, device = self._layout.hidden_size, layer.device
        return self._fill((GainMoments(size, device), GainMoments(size, device)), inputs_and_targets)

    def _fill(self, sums: tuple[Sums, Sums], inputs_and_targets: InputsAndTargets) -> tuple[Sums, Sums]:
        """Add all windows to the one or the other."""
        for rows in self._search.windows.batches():
            x_NTI, y_NTO = inputs_and_targets(rows)
            is_held_back = torch.arange(rows.start, rows.stop, device=x_NTI.device) % self._every == self._every - 1
            for part, chosen in zip(sums, (~is_held_back, is_held_back), strict=True):
                part.update(x_NTI[chosen], y_NTO[chosen])
        return sums
