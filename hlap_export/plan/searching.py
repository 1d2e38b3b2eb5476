"""A plan by search: open the model and its texts, walk the method, fit the chosen plan, and say how it came about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from hlap_export.checkpoint import read_layout
from hlap_export.checkpoint.decoder import open_decoder
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.counting import model_at
from hlap_export.errors import PlanError
from hlap_export.on_progress import OnProgress, Steps, ignore_progress
from hlap_export.plan.calibration import Search, Windows
from hlap_export.plan.costs import cost_of
from hlap_export.plan.fit_memory import fitting_bytes
from hlap_export.plan.fitted_plan import save_fitted
from hlap_export.plan.fitting import DEFAULT_OPTIONS, FitOptions
from hlap_export.plan.harp import ALPHA_GRID, default_num_layers, request_of, search_harp
from hlap_export.plan.journal import Journal
from hlap_export.plan.layer_plan import Keep, KeepHeads, RefitAttention, SkipMlp
from hlap_export.plan.methods import linear_map, method_of
from hlap_export.plan.methods.harp import Harp
from hlap_export.plan.options import FITTING_METHODS, CalibrationOptions, MethodName, MethodOptions
from hlap_export.plan.pruning_plan import PruningPlan, attention_of_alpha
from hlap_export.plan.records import SearchRecord, TextWindows
from hlap_export.plan.states import StateFiles
from hlap_export.plan.walking import Meter, Walk, quality, walk
from hlap_export.plan.workbench import Tuned, Workbench
from hlap_export.reference_model import calibration_text
from hlap_export.texts import read_tokens, require_window_length, spread_windows

# Of three windows, the third is held back to judge plans by.
JUDGED_EVERY = 3
# One in four of those fitted on is held back to choose the ridge, and an interval takes two that judge.
LEAST_WINDOWS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What is searched for: `num_layers` None leaves it to the targets, or else to the default."""

    model: Path
    layout: ModelLayout
    method: MethodName
    num_layers: int | None
    options: MethodOptions


def search_plan(
    asked: Request, calibration: CalibrationOptions, work: Path, on_progress: OnProgress = ignore_progress
) -> PruningPlan:
    """The plan; fitted weights are written to the file that the options name.

    Raises:
        PlanError, CheckpointError, TextError, OutputError: as `plan`.
    """
    targets, dtype = asked.options.targets, model_at(asked.model).dtype
    _require_something_to_tune(asked)
    targets.require_more_than_dense(cost_of(asked.layout, dtype).weight_bytes)
    num_layers = asked.num_layers
    if num_layers is None and not targets.are_given:
        num_layers = default_num_layers(asked.layout)
    if asked.method == "harp" and num_layers is not None:
        return search_harp(
            asked.model,
            read_windows(asked, calibration, calibration.windows),
            num_layers=num_layers,
            work=work,
            max_memory=calibration.max_memory,
            on_progress=on_progress,
        )
    _require_a_place_for_weights(asked)
    _require_enough(calibration.windows)
    num_windows = math.ceil(calibration.windows * JUDGED_EVERY / (JUDGED_EVERY - 1))
    linear = linear_map(asked.layout, asked.options.form, asked.options.rank)
    method = method_of(asked.method, linear, asked.options.choose_by, asked.options.refit)
    bench = open_workbench(
        asked.model,
        split_windows(read_windows(asked, calibration, num_windows)),
        work=work,
        options=FitOptions(
            follow_residual=asked.options.follow_residual,
            dtype=dtype,
            memory_bytes=fitting_bytes(asked.layout, asked.method, asked.options, calibration.window_length),
        ),
        max_memory=calibration.max_memory,
        on_progress=on_progress,
    )
    meter = Meter(bench, dtype, asked.options.measure)
    found = walk(method, asked.method, meter, bench, targets=targets, num_parts=num_layers)
    curves = [found.curve.model_copy(update={"chosen": found.chosen})]
    if asked.options.compare and asked.method != "harp":
        beside = min(len(found.removals), asked.layout.num_layers - 1)
        curves.append(walk(Harp(), "harp", meter, bench, targets=targets, num_parts=beside).curve)
    facts = {"method": asked.method, "search": _record(bench, found), "curves": tuple(curves)}
    plan = found.plan.model_copy(update=facts)
    if not plan.fits:
        return plan
    assert asked.options.weights is not None
    if not asked.options.tune_epochs:
        return save_fitted(bench.fitting(plan), plan, asked.options.weights)
    tuned = bench.tuned(plan, asked.options.tune_epochs)
    return save_fitted(tuned.fitting, _as_tuned(tuned), asked.options.weights)


def read_windows(asked: Request, calibration: CalibrationOptions, num_windows: int) -> Windows:
    """So many windows of the calibration text.

    Raises:
        TextError: it is missing or too short.
    """
    require_window_length(calibration.window_length, asked.layout.max_positions)
    path, length = calibration.text or calibration_text(), calibration.window_length
    text = read_tokens(
        asked.model, path, vocab_size=asked.layout.vocab_size, trust_remote_code=calibration.trust_remote_code
    )
    ids = spread_windows(text, windows=num_windows, window_length=length)
    described = TextWindows(name=path.name, sha256=text.sha256, num_windows=num_windows, window_length=length)
    return Windows(ids=torch.tensor(ids), text=described)


def split_windows(windows: Windows) -> tuple[Windows, Windows]:
    """The windows that plans are fitted on and chosen by, and every third one, that they are judged by."""
    is_judged = torch.arange(len(windows.ids)) % JUDGED_EVERY == JUDGED_EVERY - 1
    fitted_on, judged_by = (
        Windows(ids=ids, text=windows.text.model_copy(update={"num_windows": len(ids)}))
        for ids in (windows.ids[~is_judged], windows.ids[is_judged])
    )
    return fitted_on, judged_by


def open_workbench(
    model: Path,
    windows: tuple[Windows, Windows],
    *,
    work: Path,
    options: FitOptions = DEFAULT_OPTIONS,
    max_memory: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Workbench:
    """The dense model, run over the windows that plans are fitted on.

    Args:
        model: the dense checkpoint; computed in float32.
        windows: those that plans are fitted on and chosen by, and others, that they are judged by.
        work: folder of this search alone, where a killed one left its results and goes on from them.
        options: how parts are fitted.
        max_memory: most bytes of RAM for the whole process; None for what the machine has free.
        on_progress: called with (plans measured, about how many there will be).
    """
    layout, (fitted_on, judged_by) = read_layout(model), windows
    requests = {"fitted on": request_of(model, fitted_on), "judged by": request_of(model, judged_by)}
    search = Search(
        decoder=open_decoder(
            model,
            batch=fitted_on.batch,
            copies=len(ALPHA_GRID) + 1,
            beside_bytes=options.memory_bytes,
            max_memory=max_memory,
        ),
        windows=fitted_on,
        states=StateFiles(work, length=fitted_on.batch.length, hidden_size=layout.hidden_size),
        journal=Journal(work, {**requests, **asdict(replace(options, memory_bytes=0))}),
        steps=Steps(0, ignore_progress),
    )
    # The dense model, each layer alone, and as a rule a few more for each layer that is chosen.
    plans = Steps(4 * layout.num_layers, on_progress)
    return Workbench(search, judged_by, layout, options, plans)


def _as_tuned(tuned: Tuned) -> PruningPlan:
    """The plan with its own figures, in the record and as the chosen point of its curve, where it was only fitted."""
    (own, *others), search, told = tuned.plan.curves, tuned.plan.search, tuned.fitting.tuning
    assert search is not None and told is not None and own.chosen is not None
    if not told.kept:
        return tuned.plan
    points = list(own.points)
    chosen = points[own.chosen]
    points[own.chosen] = chosen.model_copy(update={**quality(tuned.increase), "removed": f"{chosen.removed}, tuned"})
    facts = {
        "search": search.model_copy(update={"perplexity_planned": tuned.fitting.perplexity}),
        "curves": (own.model_copy(update={"points": tuple(points)}), *others),
    }
    return tuned.plan.model_copy(update=facts)


def _record(bench: Workbench, found: Walk) -> SearchRecord:
    """How the chosen plan came about, and what its layers cost with alpha 1 and without attention."""
    plan, taken = found.plan, found.removals[: found.chosen]
    all_ones, all_dropped = (_with_alpha(bench, plan, alpha) for alpha in (1.0, 0.0))
    return SearchRecord(
        text=bench.search.windows.text,
        perplexity_dense=bench.perplexity_dense,
        perplexity_planned=bench.perplexity(plan),
        perplexity_all_ones=all_ones,
        perplexity_all_dropped=all_dropped,
        layers=tuple(removal.search for removal in taken if removal.search is not None),
    )


def _with_alpha(bench: Workbench, plan: PruningPlan, alpha: float) -> float | None:
    """Perplexity with this alpha in the layers that lose their attention; None where other parts go as well."""
    if any(isinstance(part, KeepHeads | SkipMlp) for part in (*plan.attention, *plan.mlp.values())):
        return None
    changed: Sequence[bool] = [not isinstance(attention, Keep | RefitAttention) for attention in plan.attention]
    attention = tuple(attention_of_alpha(alpha, "alpha") if gone else Keep() for gone in changed)
    return bench.perplexity(plan.model_copy(update={"attention": attention, "mlp": {}}))


def _require_a_place_for_weights(asked: Request) -> None:
    if asked.method in FITTING_METHODS and asked.options.weights is None:
        raise PlanError(
            where=f"method {asked.method}",
            expected="a file for the fitted weights, beside the plan",
            found="none",
            fix="pass MethodOptions(weights=...): plan.safetensors for plan.json",
        )


def _require_something_to_tune(asked: Request) -> None:
    if asked.options.tune_epochs and asked.method not in FITTING_METHODS:
        raise PlanError(
            where=f"method {asked.method}, --tune",
            expected=f"a method that fits weights: {' or '.join(FITTING_METHODS)}",
            found="one that fits none",
            fix="leave --tune out, or choose such a method",
        )


def _require_enough(windows: int) -> None:
    if windows < LEAST_WINDOWS:
        raise PlanError(
            where="plan.windows",
            expected=f"at least {LEAST_WINDOWS}, where plans are compared: some of them fit, others judge",
            found=str(windows),
            fix="take more calibration windows; shorter ones if the text is short",
        )
