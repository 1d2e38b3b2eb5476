"""Fit what replaces the attention: layer by layer, on what the pruned model computes, towards what the dense one does.

A value-only layer is one linear map of its normalised input; any other costs the same at inference, and the best one
has a closed form. Two residual streams go up the layers, the dense model's d and the pruned model's p. In a linear
layer the map is fitted from norm(p) to what the attention would add: to the dense attention's update, or, where the
stream's error is followed, to `d_after_attention - p`, which also undoes what the layers below did wrong. Parts
that stay can be refitted, at no cost: o_proj towards `d_after_attention - p`, down_proj towards `d_after_layer -
p_after_attention`, each with its own weight as the prior.

Moments are all that is kept of the tokens (`regression.py`), and a layer's weights, fitted ones included, are in memory
only while it is fitted, so neither long texts nor deep models need more memory. Fitted weights are rounded to what the
checkpoint stores, before the layers above are fitted to what they do. Every fourth window is held back to choose the
ridge.

Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from hlap_export.artifacts import digest_of
from hlap_export.checkpoint.decoder import LoadedLayer
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.plan.calibration import Search
from hlap_export.plan.fitted_tensors import FittedTensors
from hlap_export.plan.gain import GainFit, fit_gain
from hlap_export.plan.layer_halves import (
    Tensors,
    after_attention,
    after_layer,
    attention_inputs,
    both_halves,
    linear_inputs,
    mlp_inputs,
)
from hlap_export.plan.layer_plan import Part
from hlap_export.plan.pruning_plan import FittedPart, Linear, LinearForm, PruningPlan, RefitAttention, RefitMlp
from hlap_export.plan.records import Tuning
from hlap_export.plan.regression import LinearFit, LowRankFit, fit_linear, fit_low_rank
from hlap_export.plan.side_file import fitted_name
from hlap_export.plan.states import StateFiles
from hlap_export.plan.window_sums import InputsAndTargets, WindowSums

RIDGES = tuple(10.0**power for power in range(-6, 2))


@dataclass(frozen=True, kw_only=True, slots=True)
class FitOptions:
    """How to fit.

    Attributes:
        follow_residual: whether the map is also to undo the error that the residual stream carries so far.
        ridges: candidates, relative to the mean variance of the inputs.
        hold_back_every: of so many windows, one is held back while the ridge is chosen.
        dtype: that the checkpoint stores weights in.
        memory_bytes: what one fit takes (`fit_memory.py`): weights that stay in memory leave it free.
    """

    follow_residual: bool = True
    ridges: tuple[float, ...] = RIDGES
    hold_back_every: int = 4
    dtype: str = "float32"
    memory_bytes: int = 0


DEFAULT_OPTIONS = FitOptions()


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitting:
    """Fitted weights, named as in the side file, in float32.

    Attributes:
        tensors: by name, on the CPU; read from disk, where they stay until the next fit in the same folder.
        parts: how well each was fitted.
        losses_nats: of the planned model, summed over the tokens of each batch of calibration windows.
        num_tokens: predicted tokens in all windows.
        tuning: what tuning all of them together did, where it was asked for.
    """

    tensors: Tensors
    parts: tuple[FittedPart, ...]
    losses_nats: tuple[float, ...]
    num_tokens: int
    tuning: Tuning | None = None

    @property
    def perplexity(self) -> float:
        """Of the planned model on the calibration windows."""
        return math.exp(math.fsum(self.losses_nats) / self.num_tokens)


@torch.no_grad()
def fit_layers(
    search: Search, layout: ModelLayout, plan: PruningPlan, options: FitOptions = DEFAULT_OPTIONS
) -> Fitting:
    """Fit the plan's linear layers and MLPs from the lowest up, and run the planned model on the calibration windows.

    Args:
        search: its states must hold what enters each layer of the dense model from the plan's first changed one up, as
            `calibrate` leaves them.
        layout: the dense model's.
        plan: a valid one; parts that aren't fitted are run as planned.
        options: how to fit.

    Raises:
        PlanError: too few windows to hold one back.
    """
    if plan.first_changed == layout.num_layers:
        raise PlanError(
            where="the plan", expected="one that changes something", found="the dense model", fix="plan some layers"
        )
    return _Fitter(search, layout, plan, options).fit()


@torch.no_grad()
def unexplained(
    search: Search,
    layout: ModelLayout,
    layers: Sequence[int],
    form: LinearForm,
    options: FitOptions = DEFAULT_OPTIONS,
) -> dict[int, float]:
    """For each layer of the dense model, the share of its attention's variance that a linear map doesn't explain.

    Args:
        search: its states must hold what enters each of these layers in the dense model.
        layout: the dense model's.
        layers: to score.
        form: of the map; "low_rank" scores like "full".
        options: how to fit.

    Raises:
        PlanError: too few windows to hold one back.
    """
    shares: dict[int, float] = {}
    sums = WindowSums(search, layout, options.hold_back_every)
    for index in layers:
        with search.decoder.layer(index) as layer:

            def inputs_and_targets(rows: slice, layer: LoadedLayer = layer) -> tuple[torch.Tensor, torch.Tensor]:
                entering = search.states.read(layer.index, rows).to(layer.device)
                between, _ = both_halves(layer, layout.family, entering)
                return linear_inputs(layer, form, entering), between - entering

            found = fit_linear(*sums.linear(layer, form, inputs_and_targets), options.ridges)
            shares[index] = found.unexplained_ratio
    return shares


class _Fitter:
    def __init__(self, search: Search, layout: ModelLayout, plan: PruningPlan, options: FitOptions) -> None:
        self._search, self._plan, self._options = search, plan, options
        self._family = layout.family
        self._sums = WindowSums(search, layout, options.hold_back_every)
        self._decoder = search.decoder
        self._batches = list(search.windows.batches())
        self._pruned: StateFiles = search.states.beside("pruned")
        self._own: dict[str, torch.Tensor] = {}  # of the layer under way
        self._tensors = FittedTensors(search.journal.folder, digest_of(plan.model_dump(mode="json"))[:12])
        self._parts: list[FittedPart] = []

    def fit(self) -> Fitting:
        for index in range(self._plan.first_changed, self._decoder.num_layers):
            self._own.clear()
            with self._decoder.layer(index) as layer:
                self._fit_attention(layer)
                self._fit_mlp(layer)
                self._go_up(layer)
        return Fitting(
            tensors=self._tensors,
            parts=tuple(self._parts),
            losses_nats=self._losses_nats(),
            num_tokens=self._search.windows.targets.numel(),
        )

    def _fit_attention(self, layer: LoadedLayer) -> None:
        match attention := self._plan.attention[layer.index]:
            case Linear():
                self._fit_linear(layer, attention)
            case RefitAttention():
                self._refit_attention(layer)
            case _:
                pass

    def _fit_linear(self, layer: LoadedLayer, attention: Linear) -> None:
        def inputs_and_targets(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            entering, _ = self._dense(layer, rows)
            between, _ = both_halves(layer, self._family, entering)
            h_NTD = self._entering(layer, rows)
            reached = h_NTD if self._options.follow_residual else entering
            return linear_inputs(layer, attention.form, h_NTD), between - reached

        fitted_on, held_back = self._sums.linear(layer, attention.form, inputs_and_targets)
        if attention.form == "low_rank":
            low = fit_low_rank(fitted_on, held_back, self._options.ridges, attention.rank)
            weights = {"o_proj.weight": low.output, "v_proj.weight": low.value, "o_proj.bias": low.bias}
            self._keep(layer, weights, "attention", low)
            return
        found = fit_linear(fitted_on, held_back, self._options.ridges)
        self._keep(layer, {"o_proj.weight": found.weight, "o_proj.bias": found.bias}, "attention", found)

    def _refit_attention(self, layer: LoadedLayer) -> None:
        output = layer.module.self_attn.o_proj

        def inputs_and_targets(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            between, _ = both_halves(layer, self._family, self._dense(layer, rows)[0])
            h_NTD = self._entering(layer, rows)
            target_NTD = between - h_NTD
            if not self._family.has_post_norms and output.bias is not None:
                target_NTD = target_NTD - output.bias
            return attention_inputs(layer, self._family, h_NTD), target_NTD

        self._refit(layer, "attention", output.weight, inputs_and_targets)

    def _fit_mlp(self, layer: LoadedLayer) -> None:
        if not isinstance(self._plan.mlp.get(layer.index), RefitMlp):
            return
        down = layer.module.mlp.down_proj

        def inputs_and_targets(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
            between = self._between(layer, rows)
            _, leaving = self._dense(layer, rows)
            target_NTD = leaving() - between
            if not self._family.has_post_norms and down.bias is not None:
                target_NTD = target_NTD - down.bias
            return mlp_inputs(layer, self._family, between), target_NTD

        self._refit(layer, "mlp", down.weight, inputs_and_targets)

    def _refit(
        self, layer: LoadedLayer, part: Part, prior_OI: torch.Tensor, inputs_and_targets: InputsAndTargets
    ) -> None:
        """Fit the last weight of a half anew, with itself as the prior; a gain where a norm comes last."""
        if self._family.has_post_norms:
            gain = fit_gain(*self._sums.gain(layer, inputs_and_targets))
            self._keep(layer, {f"{part}.weight": gain.factors - 1}, part, gain)  # these norms multiply by 1 + weight
        else:
            fitted_on, held_back = self._sums.weight(layer, prior_OI.shape[1], inputs_and_targets)
            found = fit_linear(fitted_on, held_back, self._options.ridges, prior_OI=prior_OI, has_bias=False)
            self._keep(layer, {f"{part}.weight": found.weight}, part, found)

    def _go_up(self, layer: LoadedLayer) -> None:
        """Take the pruned stream through the layer as planned."""
        for rows in self._batches:
            leaving = after_layer(layer, self._family, self._plan, self._own, self._entering(layer, rows))
            self._pruned.write(layer.index + 1, rows, leaving)
        if layer.index > self._plan.first_changed:
            self._pruned.drop(layer.index)

    def _dense(self, layer: LoadedLayer, rows: slice) -> tuple[torch.Tensor, Callable[[], torch.Tensor]]:
        """What enters the layer in the dense model, and what leaves it."""
        states = self._search.states
        entering = states.read(layer.index, rows).to(layer.device)
        if layer.index + 1 < self._decoder.num_layers:
            return entering, lambda: states.read(layer.index + 1, rows).to(layer.device)
        return entering, lambda: layer(entering)

    def _entering(self, layer: LoadedLayer, rows: slice) -> torch.Tensor:
        """What enters the layer in the pruned model."""
        stream = self._pruned if layer.index > self._plan.first_changed else self._search.states
        return stream.read(layer.index, rows).to(layer.device)

    def _between(self, layer: LoadedLayer, rows: slice) -> torch.Tensor:
        """The pruned stream between the layer's attention and its MLP."""
        attention = self._plan.attention[layer.index]
        return after_attention(layer, self._family, attention, self._own, self._entering(layer, rows))

    def _keep(
        self, layer: LoadedLayer, weights: dict[str, torch.Tensor], part: Part, found: LinearFit | LowRankFit | GainFit
    ) -> None:
        for part_name, weight in weights.items():
            name = fitted_name(layer.index, part_name)
            self._own[name] = weight.to(getattr(torch, self._options.dtype)).float().cpu().contiguous()
            self._tensors.keep(name, self._own[name])
        ridge, unexplained_ratio = found.ridge, found.unexplained_ratio
        self._parts.append(FittedPart(layer=layer.index, part=part, ridge=ridge, unexplained_ratio=unexplained_ratio))

    def _losses_nats(self) -> tuple[float, ...]:
        num_layers, windows = self._decoder.num_layers, self._search.windows
        losses: list[float] = []
        for chunk in self._search.chunks(self._batches, copies=1):
            states = [self._pruned.read(num_layers, rows) for rows in chunk]
            losses += self._decoder.head.losses_nats(states, [windows.targets[rows] for rows in chunk])
        self._pruned.drop(num_layers)
        return tuple(losses)
