"""Gather what the stages found into one `Summary`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlap_export.artifacts import Manifest, read_manifest
from hlap_export.bench import report as bench
from hlap_export.bench.report import BenchReport
from hlap_export.checkpoint.layout import ModelLayout, read_layout
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.report.builds import build_rows, built_sizes
from hlap_export.report.summary import (
    ENGINE_ON_DISK,
    KV_CACHE,
    Agreement,
    AlphaCurve,
    Check,
    Extrapolated,
    Latency,
    LayerRow,
    Origin,
    Perplexity,
    Removal,
    RemovalCurve,
    Size,
    Summary,
    Text,
    Timing,
)
from hlap_export.verify.advice import fault_in_words
from hlap_export.verify.report import VerifyReport


@dataclass(frozen=True, kw_only=True, slots=True)
class Folders:
    """The artefact folders of a run, each under "dense" and "pruned", and what each was made from."""

    checkpoints: dict[str, Path]
    graphs: dict[str, Path]
    engines: dict[str, Path]
    origins: tuple[Origin, ...]
    measured_instead: str | None = None
    """Why others than these engines were verified, and none were timed."""


def summarise(
    model_name: str, folders: Folders, plan: PruningPlan, verified: VerifyReport, timed: BenchReport | None
) -> Summary:
    """One value from a run's results; nothing is computed here that a stage didn't measure or count.

    Args:
        model_name: as it is shown.
        folders: of the run.
        plan: what was pruned.
        verified: of the engines, or of what was verified in their place.
        timed: None where the engines can't run here.
    """
    layout = read_layout(folders.checkpoints["pruned"])
    graphs = {name: read_manifest(folder, kind="onnx") for name, folder in folders.graphs.items()}
    return Summary(
        model=model_name,
        family=layout.family.model_type,
        method=plan.method,
        engine=str(read_manifest(folders.engines["pruned"], kind="engine").parameters["engine"]),
        flavour=graphs["pruned"].parameters["flavour"],
        dtype=verified.dtype,
        threads=timed.threads if timed else verified.threads,
        layers=layer_rows(layout, plan),
        sizes=(_parameters(graphs), *(size_rows(timed) if timed else built_sizes(folders.engines))),
        perplexities=_perplexities(plan, verified),
        search=search_curves(plan),
        removals=removal_curves(plan),
        checks=check_rows(verified),
        agreement=tuple(
            Agreement.model_validate(row.model_dump(include=set(Agreement.model_fields))) for row in verified.agreement
        ),
        greedy_agreement=verified.greedy.agreement,
        fault=fault_in_words(verified.fault) if verified.fault and not verified.passed else None,
        latency=latency_rows(timed) if timed else (),
        extrapolated=extrapolated_rows(timed) if timed else (),
        is_noisy=timed is not None and timed.noisy,
        disturbed=timed.conditions.disturbed if timed else (),
        conditions=_conditions(timed) if timed else {},
        machine=verified.machine,
        versions=verified.versions,
        origins=folders.origins,
        builds=build_rows(folders.engines),
        measured_instead=folders.measured_instead,
    )


def check_rows(verified: VerifyReport) -> tuple[Check, ...]:
    """The checks without the places where they were worst."""
    return tuple(Check.model_validate(check.model_dump(include=set(Check.model_fields))) for check in verified.checks)


def size_rows(timed: BenchReport) -> tuple[Size, ...]:
    """What the engines cost on disk and in memory."""
    dense, pruned = timed.baseline_memory, timed.candidate_memory
    weights: tuple[Size, ...] = ()
    if dense.weight_bytes is not None and pruned.weight_bytes is not None:
        weights = (Size(name="weights", unit="bytes", dense=dense.weight_bytes, pruned=pruned.weight_bytes),)
    return (
        *weights,
        Size(name=KV_CACHE, unit="bytes", dense=dense.kv_bytes_per_token, pruned=pruned.kv_bytes_per_token),
        Size(name=ENGINE_ON_DISK, unit="bytes", dense=dense.engine_file_bytes, pruned=pruned.engine_file_bytes),
        Size(name="peak process memory", unit="bytes", dense=dense.peak_rss_bytes, pruned=pruned.peak_rss_bytes),
    )


def _parameters(graphs: dict[str, Manifest]) -> Size:
    counts = {name: int(manifest.facts["num_parameters"]) for name, manifest in graphs.items()}
    return Size(name="parameters", unit="count", **counts)


def _perplexities(plan: PruningPlan, verified: VerifyReport) -> tuple[Perplexity, ...]:
    rows: list[Perplexity] = []
    if search := plan.search:
        rows.append(
            Perplexity(
                measured_on="calibration",
                text=Text.model_validate(search.text.model_dump(include=set(Text.model_fields))),
                dense=search.perplexity_dense,
                pruned=search.perplexity_planned,
                all_ones=search.perplexity_all_ones,
                all_dropped=search.perplexity_all_dropped,
            )
        )
    if (held_out := held_out_perplexity(verified)) is not None:
        rows.append(held_out)
    return tuple(rows)


def search_curves(plan: PruningPlan) -> tuple[AlphaCurve, ...]:
    """The curves in the order in which they were searched."""
    if plan.search is None:
        return ()
    return tuple(
        AlphaCurve(
            layer=layer.layer,
            alphas=tuple(score.alpha for score in layer.curve),
            perplexities=tuple(score.perplexity for score in layer.curve),
            chosen=layer.best.alpha,
        )
        for layer in plan.search.layers
    )


def removal_curves(plan: PruningPlan) -> tuple[RemovalCurve, ...]:
    """What each further removal costs: the plan's own method first."""
    return tuple(
        RemovalCurve(
            method=curve.method,
            is_own=index == 0,
            points=tuple(
                Removal(
                    removed=point.removed,
                    increase_ratio=point.increase,
                    increase_ratio_low=point.increase_low,
                    increase_ratio_high=point.increase_high,
                    kv_ratio=point.kv_ratio,
                    weight_ratio=point.weight_ratio,
                    latency_ratio=point.latency_ratio,
                    is_chosen=point.num_removed == curve.chosen,
                )
                for point in curve.points
            ),
        )
        for index, curve in enumerate(plan.curves)
    )


def held_out_perplexity(verified: VerifyReport) -> Perplexity | None:
    """Both engines on the evaluation text; None where there was no text or no dense engine."""
    measured = verified.perplexity
    if measured is None or measured.baseline is None:
        return None
    return Perplexity(
        measured_on="held-out",
        text=Text(
            name=Path(verified.tokens.path or "random tokens").name,
            num_windows=measured.num_windows,
            window_length=measured.window_length,
        ),
        dense=measured.baseline.perplexity,
        pruned=measured.candidate.perplexity,
        increase_ratio_low=measured.increase_ratio_low,
        increase_ratio_high=measured.increase_ratio_high,
    )


def latency_rows(timed: BenchReport) -> tuple[Latency, ...]:
    """Ratios turned round: above 1 where the pruned engine is faster."""
    return tuple(
        Latency(
            phase=row.phase,
            batch=row.batch,
            num_tokens=row.num_tokens,
            dense=_timing(row.baseline, row.baseline_limit),
            pruned=_timing(row.candidate, row.candidate_limit),
            speedup=1 / row.ratio,
            speedup_low=1 / row.ratio_high,
            speedup_high=1 / row.ratio_low,
            limit_speedup=1 / row.limit_ratio,
            noise=row.noise,
        )
        for row in timed.latency
    )


def _timing(timing: bench.Timing, limit: bench.Limit) -> Timing:
    return Timing.model_validate({**timing.model_dump(), "limit_ms": limit.min_ms})


def extrapolated_rows(timed: BenchReport) -> tuple[Extrapolated, ...]:
    """Longer contexts than were timed, turned round likewise."""
    return tuple(
        Extrapolated(
            batch=row.batch,
            num_tokens=row.num_tokens,
            longest_timed=row.longest_timed,
            dense_ms=row.baseline_ms,
            pruned_ms=row.candidate_ms,
            speedup=1 / row.ratio,
            speedup_low=1 / row.ratio_high,
            speedup_high=1 / row.ratio_low,
        )
        for row in timed.extrapolated
    )


def _conditions(timed: BenchReport) -> dict[str, Any]:
    """The machine's state and speed, without what it didn't say."""
    found, speed = timed.conditions, timed.speed
    facts: dict[str, Any] = {
        "clock_mhz": found.after.clock_mhz,
        "governor": found.after.governor,
        "power_watts": found.power_watts,
        "temperature_celsius": found.after.temperature_celsius,
        "load_average": found.before.load_average,
        "other_cpu_ratio": found.other_cpu_ratio,
        "stolen_cpu_ratio": found.stolen_cpu_ratio,
        "gpus": ", ".join(gpu.name for gpu in found.after.gpus) or None,
        "flops_per_second": speed and speed.flops_per_second,
        "read_bytes_per_second": speed and speed.reads[-1].bytes_per_second,
    }
    return {name: value for name, value in facts.items() if value is not None}


def layer_rows(layout: ModelLayout, plan: PruningPlan | None) -> tuple[LayerRow, ...]:
    """One row per layer of a checkpoint, dense or pruned; the plan, where known, tells alphas and refitted MLPs."""
    alphas = plan.alphas if plan else {}
    refitted = {index for index, mlp in plan.mlp.items() if mlp.kind == "refit"} if plan else set[int]()
    return tuple(
        LayerRow(
            layer=layer.index,
            attention=layer.kind,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            alpha=alphas.get(layer.index, 0.0 if layer.kind == "skip" else None),
            is_pruned=layer.kind != "full"
            or layer.num_heads < layout.num_heads
            or not layer.has_mlp
            or layer.index in refitted,
            mlp="refit" if layer.index in refitted else "keep" if layer.has_mlp else "skip",
        )
        for layer in layout.layers
    )
