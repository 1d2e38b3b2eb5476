"""What every method works with: the model, its calibration windows, and the loss of any plan on them.

Whatever took time is kept in the journal under what it is, so that a killed search goes on where it stopped and no plan
is measured twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hlap_export.artifacts import digest_of
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.on_progress import Steps
from hlap_export.plan.calibration import Search, Windows, calibrate
from hlap_export.plan.fitting import FitOptions, Fitting, fit_layers, unexplained
from hlap_export.plan.judging import Increase, increase_of, window_losses
from hlap_export.plan.layer_halves import Tensors
from hlap_export.plan.layer_plan import LinearForm
from hlap_export.plan.pruning_plan import PruningPlan, dense_plan
from hlap_export.plan.records import Tuning
from hlap_export.plan.tuning import tune, with_all_refitted


@dataclass(frozen=True, kw_only=True, slots=True)
class Tuned:
    """A plan after tuning, its weights, and how good it is on the windows that plans are judged by."""

    plan: PruningPlan
    fitting: Fitting
    increase: Increase


class Workbench:
    """The dense model run over the windows once, ready to measure plans.

    Args:
        search: decoder, journal and the windows that parts are fitted on; what enters every layer above the first is
            kept in its states.
        judged_by: windows to judge plans by.
        layout: of the dense model.
        options: how parts are fitted.
        plans: counts one for each plan that is measured.

    Attributes:
        dense: the plan that keeps everything.
        perplexity_dense: on the windows that parts are fitted on.
    """

    def __init__(
        self, search: Search, judged_by: Windows, layout: ModelLayout, options: FitOptions, plans: Steps
    ) -> None:
        self.search, self.layout, self._judged_by = search, layout, judged_by
        self._options, self._plans = options, plans
        self.dense = dense_plan(layout)
        self.perplexity_dense = plans.then(calibrate(search, first_layer=1))

    def perplexity(self, plan: PruningPlan) -> float:
        """On the windows that parts are fitted on; the plan's own parts are fitted on the way."""
        if plan.first_changed == self.layout.num_layers:
            return self.perplexity_dense
        return self.remembered(f"plan {_key(plan)}", lambda: self._plans.then(self.fitting(plan).perplexity))

    def loss(self, plan: PruningPlan) -> float:
        """Nats per token on the windows that parts are fitted on."""
        return math.log(self.perplexity(plan))

    def increase(self, plan: PruningPlan) -> Increase:
        """How much higher the perplexity is than the dense model's, on the windows that nothing is fitted on."""
        return increase_of(self._judged(self.dense), self._judged(plan))

    def fitting(self, plan: PruningPlan) -> Fitting:
        """The plan's fitted weights, and the perplexity with them."""
        return fit_layers(self.search, self.layout, plan, self._options)

    def tuned(self, plan: PruningPlan, epochs: int) -> Tuned:
        """The plan with all its fitted weights tuned together; as it was where that made it worse.

        Better or worse is judged on the windows that nothing was fitted on.
        """
        fitting, wider, before = self.fitting(plan), with_all_refitted(plan), self.increase(plan)
        decoder, family, windows = self.search.decoder, self.layout.family, self.search.windows
        tuned = tune(self.search, family, wider, fitting.tensors, epochs, self._plans)
        stored = getattr(torch, self._options.dtype)
        tensors = {name: tensor.to(stored).float() for name, tensor in tuned.items()}
        losses = window_losses(decoder, family, wider, tensors, self._judged_by)
        after = increase_of(self._judged(self.dense), losses)
        is_better = after.gap_nats < before.gap_nats
        told = Tuning(epochs=epochs, gap_nats_before=before.gap_nats, gap_nats_after=after.gap_nats, kept=is_better)
        if not is_better:
            return Tuned(plan=plan, fitting=replace(fitting, tuning=told), increase=before)
        per_token = window_losses(decoder, family, wider, tensors, windows)
        made = Fitting(
            tensors=tensors,
            parts=fitting.parts,
            losses_nats=tuple(loss * windows.targets.shape[1] for loss in per_token),
            num_tokens=windows.targets.numel(),
            tuning=told,
        )
        return Tuned(plan=wider, fitting=made, increase=after)

    def unexplained(self, layers: Sequence[int], form: LinearForm) -> dict[int, float]:
        """For each layer, the share of its attention's variance that a linear map of its input doesn't explain."""
        key = f"unexplained {form} {list(layers)}"
        return dict(self.remembered(key, lambda: list(self._unexplained(layers, form).items())))

    def _unexplained(self, layers: Sequence[int], form: LinearForm) -> dict[int, float]:
        return unexplained(self.search, self.layout, layers, form, self._options)

    def remembered(self, key: str, make: Callable[[], Any]) -> Any:
        """A JSON value from the journal, or else made and put there."""
        if key not in self.search.journal:
            self.search.journal.record(key, make())
        return self.search.journal.get(key)

    def _judged(self, plan: PruningPlan) -> list[float]:
        def losses() -> tuple[float, ...]:
            fitted: Tensors = self.fitting(plan).tensors if plan.fits else {}
            return window_losses(self.search.decoder, self.layout.family, plan, fitted, self._judged_by)

        return self.remembered(f"judged {_key(plan)}", losses)


def _key(plan: PruningPlan) -> str:
    return digest_of(plan.model_dump(mode="json", include={"attention", "mlp"}))
