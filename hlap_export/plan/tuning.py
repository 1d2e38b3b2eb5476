"""Tune everything that a plan fits at once, by gradients, towards what the dense model predicts.

The closed forms fit part by part to the dense model's residual stream, where every direction counts alike. What counts
is the prediction, so here all fitted weights change together such that KL(dense || planned) of the next token falls
(distillation; Hinton et al. 2015, arXiv 1503.02531), with Adam. The plan stays what it was: same shapes, same cost.

As a fit does, it holds one layer's weights at a time: up through the layers, whose inputs are kept, and down again,
each computed once more for its gradient (Chen et al. 2016, arXiv 1604.06174). What stays in memory is the fitted
weights with their gradients and Adam's two moments. After each epoch all of it is saved, and a killed search goes on
from there.

Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from hlap_export.artifacts import digest_of, file_written_whole
from hlap_export.families import Family
from hlap_export.on_progress import Steps
from hlap_export.plan.calibration import Search
from hlap_export.plan.fit_memory import WINDOWS_TUNED_AT_ONCE
from hlap_export.plan.layer_halves import after_layer, last_module
from hlap_export.plan.layer_plan import Keep, Part, RefitAttention, RefitMlp
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.side_file import fitted_name

RATE = 0.04
"""A step's size relative to a weight matrix's root mean square: what models of any width and scale can take."""
BETAS = 0.9, 0.99
WARM_UP_STEPS = 10
SEED = 0


def with_all_refitted(plan: PruningPlan) -> PruningPlan:
    """The same plan with the last weight of every half that stays fitted as well, which costs nothing at inference.

    Layer 0 keeps its own: what enters the other layers is all that a search keeps on disk.
    """
    attention = tuple(
        RefitAttention() if isinstance(attention, Keep) and index > 0 else attention
        for index, attention in enumerate(plan.attention)
    )
    mlp = {index: plan.mlp.get(index, RefitMlp()) for index in range(1, len(plan.attention))}
    return plan.model_copy(update={"attention": attention, "mlp": mlp})


def tune(
    search: Search, family: Family, plan: PruningPlan, fitted: Mapping[str, torch.Tensor], epochs: int, steps: Steps
) -> dict[str, torch.Tensor]:
    """The fitted weights once tuned, by name, float32 on the CPU.

    Args:
        search: its states must hold what enters each layer of the dense model from the plan's first changed one up.
        family: of the model.
        plan: `with_all_refitted`.
        fitted: the side file's tensors so far; where one is missing, the dense model's weight is where it begins.
        epochs: passes over the search's windows.
        steps: counts an epoch as one.
    """
    tuner = _Tuner(search, family, plan, fitted, epochs)
    done = tuner.restored()
    steps.expect(epochs - done)
    for epoch in range(done, epochs):
        steps.then(tuner.run(epoch))
    return {name: weight.detach() for name, weight in tuner.weights.items()}


class _Tuner:
    def __init__(
        self,
        search: Search,
        family: Family,
        plan: PruningPlan,
        fitted: Mapping[str, torch.Tensor],
        epochs: int,
    ) -> None:
        self._search, self._family, self._plan = search, family, plan
        self._decoder = search.decoder
        self._num_windows = len(search.windows.ids)
        self._dense = search.states.beside("dense")
        self._run_last_dense_layer()
        self.weights = {name: weight.requires_grad_() for name, weight in self._beginning(fitted).items()}
        self._optimiser = torch.optim.Adam(
            [{"params": [weight], "lr": RATE * self._scale(name)} for name, weight in self.weights.items()], betas=BETAS
        )
        steps = epochs * math.ceil(self._num_windows / WINDOWS_TUNED_AT_ONCE)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimiser,
            lambda step: min((step + 1) / WARM_UP_STEPS, 1.0) * 0.5 * (1 + math.cos(math.pi * step / steps)),
        )
        request = [plan.model_dump(mode="json", include={"attention", "mlp"}), epochs]
        self._saved: Path = search.journal.folder / f"tuning_{digest_of(request)[:12]}.pt"

    @torch.no_grad()
    def _beginning(self, fitted: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies of the fitted weights, and of the dense ones that nothing was fitted for."""
        weights = {name: fitted[name].clone() for name in fitted}
        for index in range(self._plan.first_changed, self._decoder.num_layers):
            parts: dict[Part, bool] = {
                "attention": isinstance(self._plan.attention[index], RefitAttention),
                "mlp": isinstance(self._plan.mlp.get(index), RefitMlp),
            }
            with self._decoder.layer(index) as layer:
                for part, is_tuned in parts.items():
                    name = fitted_name(index, f"{part}.weight")
                    if is_tuned and name not in weights:
                        own = layer.module.get_parameter(f"{last_module(self._family, part)}.weight")
                        weights[name] = own.detach().cpu().clone()
        return weights

    @torch.no_grad()
    def _run_last_dense_layer(self) -> None:
        """Keep what leaves it: a search keeps only what enters the layers."""
        last = self._decoder.num_layers - 1
        with self._decoder.layer(last) as layer:
            for rows in self._search.windows.batches():
                self._dense.write(last + 1, rows, layer(self._search.states.read(last, rows)))

    def _scale(self, name: str) -> float:
        """Root mean square; a norm of Gemma-2 multiplies by 1 + weight."""
        weight = self.weights[name].detach()
        is_gain = (
            self._family.has_post_norms and weight.dim() == 1 and name.endswith(("attention.weight", "mlp.weight"))
        )
        return (weight + is_gain).square().mean().sqrt().item()

    def restored(self) -> int:
        """How many epochs a killed search had done, whose weights and moments are taken over."""
        if not self._saved.exists():
            return 0
        state: dict[str, Any] = torch.load(self._saved, weights_only=True)
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(state["weights"][name])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        return state["epochs"]

    def run(self, epoch: int) -> None:
        """One pass over the windows, in an order of its own."""
        order: list[int] = np.random.default_rng((SEED, epoch)).permutation(self._num_windows).tolist()
        for start in range(0, len(order), WINDOWS_TUNED_AT_ONCE):
            self._step(order[start : start + WINDOWS_TUNED_AT_ONCE])
        state = {
            "epochs": epoch + 1,
            "weights": {name: weight.detach() for name, weight in self.weights.items()},
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
        }
        with file_written_whole(self._saved) as partial:
            torch.save(state, partial)

    def _step(self, windows: list[int]) -> None:
        rows = [slice(window, window + 1) for window in windows]
        first, last = self._plan.first_changed, self._decoder.num_layers
        h_NTD = torch.cat([self._search.states.read(first, row) for row in rows])
        entering: list[torch.Tensor] = []
        for index in range(first, last):
            entering.append(h_NTD)
            with self._decoder.layer(index) as layer, torch.no_grad():
                planned = after_layer(layer, self._family, self._plan, self.weights, h_NTD)
            h_NTD = self._decoder.at_rest(planned)
        dense_NTD = torch.cat([self._dense.read(last, row) for row in rows])
        _, gradient_NTD = self._decoder.head.divergence(h_NTD, dense_NTD)
        gradient_NTD /= gradient_NTD.shape[:2].numel()
        for index in reversed(range(first, last)):
            h_NTD = entering.pop().detach().requires_grad_()
            with self._decoder.layer(index) as layer, torch.enable_grad():
                planned = after_layer(layer, self._family, self._plan, self.weights, h_NTD)
            torch.autograd.backward(planned, gradient_NTD)
            assert h_NTD.grad is not None
            gradient_NTD = h_NTD.grad
        cast(Any, self._optimiser).step()
        self._optimiser.zero_grad()
        self._schedule.step()
