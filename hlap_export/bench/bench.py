"""Bench an engine against the dense one: latency at each point, limits, peak memory, sizes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hlap_export.artifacts import Manifest, machine_facts, package_versions
from hlap_export.bench.conditions import Watch
from hlap_export.bench.extrapolation import extrapolate
from hlap_export.bench.latency import Protocol, time_pairs
from hlap_export.bench.memory import measure_memory
from hlap_export.bench.points import fitting_points, largest_batch, longest_prompt
from hlap_export.bench.report import AdjustedLength, BenchReport, LatencyRow, MachineSpeed, MemoryRow
from hlap_export.bench.roofline import EngineShape, Limits, limits, machine_speed
from hlap_export.bench.statistics import Samples, intervals, noise, timing
from hlap_export.bench.steps import step_of
from hlap_export.bench.work import Point
from hlap_export.checkpoint import read_layout
from hlap_export.engines import open_session, require_intact, usable_cores
from hlap_export.on_progress import OnProgress, Steps, ignore_progress

MIN_REPEATS = 5
"""Pairs of a point that takes long, of all rounds together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """How it is measured.

    Attributes:
        batches: rows that run together; every length is timed with each.
        repeats: timed pairs (candidate, baseline) of each point.
        rounds: how often the engines are loaded anew; each round times every point for its share of the pairs.
        min_seconds_per_point: short steps get more pairs than `repeats` until so much time is spent.
        max_seconds_per_point: no new pair begins after so long, if there are five.
        threads: CPU threads of both engines; None takes every usable core.
        seed: of the token ids, the cache's values and the bootstrap.
    """

    batches: tuple[int, ...] = (1,)
    repeats: int = 20
    rounds: int = 5
    min_seconds_per_point: float = 2.0
    max_seconds_per_point: float = 10.0
    threads: int | None = None
    seed: int = 0


def bench(
    candidate: Path,
    baseline: Path,
    *,
    prompt_lengths: Sequence[int] = (64, 256, 1024),
    context_lengths: Sequence[int] = (64, 512, 2048),
    options: BenchOptions | None = None,
    on_progress: OnProgress = ignore_progress,
) -> BenchReport:
    """Time two engines alternately in this process, and measure each one's memory in a process of its own.

    Args:
        candidate: engine folder.
        baseline: engine folder that the ratios refer to, built in the same way from the dense model.
        prompt_lengths: tokens of a prefill; cut to the model's positions, and to the engines' capacity.
        context_lengths: tokens already cached when one more is decoded; cut likewise.
        options: how it is measured; None for the defaults.
        on_progress: called with (steps done, steps in all).

    Raises:
        ArtefactError: not an engine folder, damaged, or it can't be loaded or run.
    """
    started, watch = time.perf_counter(), Watch()
    options = options or BenchOptions()
    engines = _Engine.at(candidate), _Engine.at(baseline)
    positions, room = (min(of(engine) for engine in engines) for of in (_positions, _room))
    points, adjusted = fitting_points(prompt_lengths, context_lengths, options.batches, max_positions=room)
    measured = _measure(engines, points, options, on_progress)
    conditions = watch.end()
    return BenchReport(
        candidate=str(candidate),
        candidate_digest=engines[0].manifest.digest,
        baseline=str(baseline),
        baseline_digest=engines[1].manifest.digest,
        engine=str(engines[0].manifest.parameters["engine"]),
        provider=measured.provider,
        dtype=engines[0].shape.dtype,
        baseline_dtype=engines[1].shape.dtype,
        threads=measured.threads,
        batches=tuple(dict.fromkeys(options.batches)),
        latency=measured.latency,
        extrapolated=extrapolate(measured.latency, longest=room - 1),
        adjusted_lengths=adjusted
        if room == positions
        else tuple(_cut_by_capacity(length, room) for length in adjusted),
        candidate_memory=measured.memory[0],
        baseline_memory=measured.memory[1],
        memory_prompt_length=longest_prompt(points),
        memory_batch=largest_batch(points),
        noisy=bool(conditions.disturbed) or any(row.noisy for row in measured.latency),
        speed=measured.speed,
        conditions=conditions,
        seed=options.seed,
        seconds=round(time.perf_counter() - started, 3),
        machine=machine_facts(),
        versions=package_versions(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Engine:
    folder: Path
    manifest: Manifest
    shape: EngineShape

    @classmethod
    def at(cls, folder: Path) -> _Engine:
        manifest = require_intact(folder)  # numbers are told of the digest
        shape = EngineShape(layout=read_layout(folder), dtype=str(manifest.parameters["dtype"]))
        return cls(folder=folder, manifest=manifest, shape=shape)


def _positions(engine: _Engine) -> int:
    return engine.shape.layout.max_positions


def _room(engine: _Engine) -> int:
    """Tokens that a row can have: the model's positions, or fewer where the engine's cache has a fixed capacity."""
    return min(_positions(engine), int(engine.manifest.parameters.get("capacity", _positions(engine))))


def _cut_by_capacity(length: AdjustedLength, room: int) -> AdjustedLength:
    """The same with the reason that isn't the model's."""
    new = ", the new one among them" if length.phase == "decode" else ""
    return length.model_copy(update={"reason": f"an engine was built with room for {room} tokens{new}"})


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    provider: str
    threads: int
    memory: tuple[MemoryRow, MemoryRow]
    speed: MachineSpeed | None
    latency: tuple[LatencyRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Timed:
    provider: str
    samples: tuple[Samples, ...]


def _measure(
    engines: tuple[_Engine, _Engine], points: Sequence[Point], options: BenchOptions, on_progress: OnProgress
) -> _Measured:
    """Memory first, so that no loaded engine takes the room of the one that is measured; then every point."""
    threads = options.threads or usable_cores()
    steps = Steps(options.rounds * len(points) + len(engines), on_progress)
    ours, theirs = (
        steps.then(
            measure_memory(
                engine.folder, prompt_length=longest_prompt(points), batch=largest_batch(points), threads=threads
            )
        )
        for engine in engines
    )
    timed = _time_points(engines, points, options, steps)
    speed = machine_speed(threads) if timed.provider.startswith("CPU") else None
    shapes = engines[0].shape, engines[1].shape
    return _Measured(
        provider=timed.provider,
        threads=threads,
        memory=(ours, theirs),
        speed=speed,
        latency=tuple(
            latency_row(point, samples, limits(*shapes, point, speed), seed=options.seed)
            for point, samples in zip(points, timed.samples, strict=True)
        ),
    )


def _time_points(
    engines: tuple[_Engine, _Engine], points: Sequence[Point], options: BenchOptions, steps: Steps
) -> _Timed:
    """Every point in every round, so that a slow minute of the machine is shared by all of them."""
    threads, provider = options.threads or usable_cores(), ""
    rounds: dict[Point, list[Samples]] = {point: [] for point in points}
    for number in range(options.rounds):
        first, second = (engine.folder for engine in engines)
        with open_session(first, threads=threads) as ours, open_session(second, threads=threads) as theirs:
            provider = ours.provider
            for point in points:
                candidate, baseline = (step_of(session, point, seed=options.seed) for session in (ours, theirs))
                rounds[point].append(time_pairs(candidate, baseline, _protocol(options, number)))
                steps.advance()
    return _Timed(provider=provider, samples=tuple(Samples.joined(rounds[point]) for point in points))


def _protocol(options: BenchOptions, number: int) -> Protocol:
    """One round's share of a point's pairs and time."""
    return Protocol(
        repeats=math.ceil(options.repeats / options.rounds),
        min_repeats=math.ceil(MIN_REPEATS / options.rounds),
        min_seconds=options.min_seconds_per_point / options.rounds,
        max_seconds=options.max_seconds_per_point / options.rounds,
        baseline_first=number % 2 == 1,
    )


def latency_row(point: Point, samples: Samples, limit: Limits, *, seed: int) -> LatencyRow:
    """Summarise what was timed at a point."""
    found, new_tokens = intervals(samples, seed=seed), point.batch * point.new_tokens
    unsure = noise(samples.baseline, samples.ratio, found.ratio)
    return LatencyRow(
        phase=point.phase,
        batch=point.batch,
        num_tokens=point.num_tokens,
        num_rounds=len(samples.round_sizes),
        num_repeats=samples.candidate.size,
        candidate=timing(samples.candidate, found.candidate, new_tokens),
        baseline=timing(samples.baseline, found.baseline, new_tokens),
        ratio=samples.ratio,
        ratio_low=found.ratio.low,
        ratio_high=found.ratio.high,
        candidate_limit=limit.candidate,
        baseline_limit=limit.baseline,
        limit_ratio=limit.ratio,
        noisy=unsure is not None,
        noise=unsure,
    )
