"""Bench an engine against the dense one: latency at each length, peak memory, sizes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from hlap_export.artifacts import machine_facts, package_versions, read_manifest
from hlap_export.bench.latency import Protocol, Step, latency_row, time_pairs
from hlap_export.bench.memory import measure_memory
from hlap_export.bench.report import AdjustedLength, BenchReport, LatencyRow, MemoryRow
from hlap_export.bench.steps import BATCH, decode_step, prefill_step
from hlap_export.checkpoint import read_layout
from hlap_export.engines import Session, open_session, usable_cores
from hlap_export.on_progress import OnProgress, Steps, ignore_progress

Result = TypeVar("Result")
Phase = Literal["prefill", "decode"]
STEPS: dict[Phase, Callable[..., Step]] = {"prefill": prefill_step, "decode": decode_step}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """How it is measured.

    Attributes:
        repeats: timed pairs (candidate, baseline) for each length.
        min_seconds_per_length: short steps get more pairs than `repeats` until so much time is spent.
        max_seconds_per_length: no new pair begins after so long, if there are five.
        threads: CPU threads of both engines; None takes every usable core.
        seed: of the token ids, the cache's values and the bootstrap.
    """

    repeats: int = 20
    min_seconds_per_length: float = 2.0
    max_seconds_per_length: float = 10.0
    threads: int | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One length to be timed."""

    phase: Phase
    num_tokens: int

    @property
    def new_tokens(self) -> int:
        """Tokens that one step adds."""
        return BATCH * (self.num_tokens if self.phase == "prefill" else 1)


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
        prompt_lengths: tokens of a prefill; cut to the model's positions.
        context_lengths: tokens already cached when one more is decoded; cut likewise.
        options: how it is measured; None for the defaults.
        on_progress: called with (steps done, steps in all).

    Raises:
        ArtefactError: not an engine folder, or it can't be loaded or run.
    """
    started, load_before = time.perf_counter(), _load_average()
    options = options or BenchOptions()
    manifest, baseline_manifest = (read_manifest(folder, kind="engine") for folder in (candidate, baseline))
    cases, adjusted = _fitting_cases((candidate, baseline), prompt_lengths, context_lengths)
    measured = _measure((candidate, baseline), cases, options, on_progress)
    return BenchReport(
        candidate=str(candidate),
        candidate_digest=manifest.digest,
        baseline=str(baseline),
        baseline_digest=baseline_manifest.digest,
        engine=str(manifest.parameters["engine"]),
        provider=measured.provider,
        dtype=str(manifest.parameters["dtype"]),
        baseline_dtype=str(baseline_manifest.parameters["dtype"]),
        threads=measured.threads,
        batch=BATCH,
        latency=measured.latency,
        adjusted_lengths=adjusted,
        candidate_memory=measured.candidate_memory,
        baseline_memory=measured.baseline_memory,
        memory_prompt_length=_memory_prompt_length(cases),
        noisy=any(row.noisy for row in measured.latency),
        load_average_before=load_before,
        load_average_after=_load_average(),
        seed=options.seed,
        seconds=round(time.perf_counter() - started, 3),
        machine=machine_facts(),
        versions=package_versions(),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    provider: str
    threads: int
    candidate_memory: MemoryRow
    baseline_memory: MemoryRow
    latency: tuple[LatencyRow, ...]


def _measure(
    engines: tuple[Path, Path], cases: Sequence[Case], options: BenchOptions, on_progress: OnProgress
) -> _Measured:
    """Memory first, so that no loaded engine takes the room of the one that is measured; then every case."""
    threads = options.threads or usable_cores()
    prompt_length = _memory_prompt_length(cases)
    steps = Steps(len(cases) + len(engines), on_progress)
    candidate_memory, baseline_memory = (
        steps.then(measure_memory(folder, prompt_length=prompt_length, threads=threads)) for folder in engines
    )
    with open_session(engines[0], threads=threads) as ours, open_session(engines[1], threads=threads) as theirs:
        return _Measured(
            provider=ours.provider,
            threads=threads,
            candidate_memory=candidate_memory,
            baseline_memory=baseline_memory,
            latency=tuple(steps.then(_time_case(case, ours, theirs, options)) for case in cases),
        )


def _memory_prompt_length(cases: Sequence[Case]) -> int:
    """The longest prompt that is timed: peak memory belongs to it."""
    return max((case.num_tokens for case in cases if case.phase == "prefill"), default=1)


def _fitting_cases(
    engines: Sequence[Path], prompt_lengths: Sequence[int], context_lengths: Sequence[int]
) -> tuple[tuple[Case, ...], tuple[AdjustedLength, ...]]:
    """The cases that both engines have positions for; a decode step needs one position more than its context."""
    max_positions = min(read_layout(folder).max_positions for folder in engines)
    prompts, adjusted_prompts = fit_lengths("prefill", prompt_lengths, limit=max_positions)
    contexts, adjusted_contexts = fit_lengths("decode", context_lengths, limit=max_positions - 1)
    return (*prompts, *contexts), (*adjusted_prompts, *adjusted_contexts)


def fit_lengths(
    phase: Phase, lengths: Sequence[int], *, limit: int
) -> tuple[tuple[Case, ...], tuple[AdjustedLength, ...]]:
    """Cut lengths to `limit` tokens, leaving out what that repeats; say what was changed and why."""
    used: list[int] = []
    adjusted: list[AdjustedLength] = []
    for length in lengths:
        fitting = min(length, limit)
        is_new = fitting not in used
        if is_new:
            used.append(fitting)
        if fitting != length:
            reason = f"the model has positions for {limit} tokens {'before one more' if phase == 'decode' else ''}"
            adjusted.append(
                AdjustedLength(phase=phase, asked=length, used=fitting if is_new else None, reason=reason.strip())
            )
    return tuple(Case(phase=phase, num_tokens=length) for length in used), tuple(adjusted)


def _time_case(case: Case, candidate: Session, baseline: Session, options: BenchOptions) -> LatencyRow:
    make = STEPS[case.phase]
    samples = time_pairs(
        make(candidate, case.num_tokens, seed=options.seed),
        make(baseline, case.num_tokens, seed=options.seed),
        Protocol(
            repeats=options.repeats,
            min_seconds=options.min_seconds_per_length,
            max_seconds=options.max_seconds_per_length,
            seed=options.seed,
        ),
    )
    return latency_row(case.phase, case.num_tokens, samples, new_tokens=case.new_tokens, seed=options.seed)


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
