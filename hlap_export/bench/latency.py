"""Time two steps against each other: warmed up, alternating, with an interval for the ratio.

The two alternate as ABBA (candidate, baseline, baseline, candidate, ...), so that a machine that slows down or speeds
up meanwhile does so to both alike. Before each timed step the same engine runs once untimed: the other one has taken
its place in the CPU's caches, which nobody does in a real decode loop (without it, decode of an 11 MB model measured
1.5 times as long).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hlap_export.bench.report import LatencyRow, Timing

Step = Callable[[], object]
Clock = Callable[[], float]
Seconds = NDArray[np.float64]

# A warm-up run that is no longer 5% faster than the best before it has nothing left to warm.
STABLE_GAIN = 0.05
MIN_WARM_UPS, MAX_WARM_UPS = 3, 20
MIN_REPEATS, MAX_REPEATS = 5, 1000
BOOTSTRAP_SAMPLES = 2000
# What an idle machine stays below; beyond it the last digits mean nothing.
MAX_SPREAD = 1.25
MAX_INTERVAL_WIDTH = 0.10


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How one pair is timed.

    Attributes:
        repeats: pairs.
        min_seconds: short steps are repeated for so long (up to `MAX_REPEATS` pairs), even beyond `repeats`.
        max_seconds: no new pair begins after so long, if there are `MIN_REPEATS`.
        seed: of the bootstrap.
        clock: seconds.
    """

    repeats: int
    min_seconds: float
    max_seconds: float
    seed: int
    clock: Clock = time.perf_counter


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Durations of the pairs, in seconds; index i of both ran right after each other."""

    candidate: Seconds
    baseline: Seconds


def warm_up(step: Step, clock: Clock) -> int:
    """Run `step` until it stops getting faster; returns how often it ran."""
    best = float("inf")
    for count in range(1, MAX_WARM_UPS + 1):
        started = clock()
        step()
        took = clock() - started
        if count >= MIN_WARM_UPS and took > best * (1 - STABLE_GAIN):
            return count
        best = min(best, took)
    return MAX_WARM_UPS


def time_pairs(candidate: Step, baseline: Step, protocol: Protocol) -> Samples:
    """Warm both up, then time them alternately in ABBA order, each timed step after an untimed one."""
    clock = protocol.clock
    warm_up(candidate, clock)
    warm_up(baseline, clock)
    taken: tuple[list[float], list[float]] = ([], [])
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        began = clock()
        for pair in range(MAX_REPEATS):
            if _is_enough(pair, clock() - began, protocol):
                break
            for which in (0, 1) if pair % 2 == 0 else (1, 0):
                step = (candidate, baseline)[which]
                step()
                started = clock()
                step()
                taken[which].append(clock() - started)
    finally:
        if was_collecting:
            gc.enable()
    return Samples(candidate=np.array(taken[0]), baseline=np.array(taken[1]))


def _is_enough(pairs: int, seconds: float, protocol: Protocol) -> bool:
    if pairs < protocol.repeats:
        return pairs >= MIN_REPEATS and seconds > protocol.max_seconds
    return seconds >= protocol.min_seconds


def ratio_interval(samples: Samples, *, seed: int) -> tuple[float, float]:
    """95% bootstrap interval of median(candidate) / median(baseline), pairs resampled together."""
    count = samples.candidate.size
    picks = np.random.default_rng(seed).integers(0, count, (BOOTSTRAP_SAMPLES, count))
    ratios = np.median(samples.candidate[picks], axis=1) / np.median(samples.baseline[picks], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return float(low), float(high)


def latency_row(
    phase: Literal["prefill", "decode"], num_tokens: int, samples: Samples, *, new_tokens: int, seed: int
) -> LatencyRow:
    """Summarise the samples; `new_tokens` is what one step adds, for tokens per second."""
    candidate, baseline = _timing(samples.candidate, new_tokens), _timing(samples.baseline, new_tokens)
    ratio = candidate.p50_ms / baseline.p50_ms
    low, high = ratio_interval(samples, seed=seed)
    noise = _noise(baseline, ratio, high - low)
    return LatencyRow(
        phase=phase,
        num_tokens=num_tokens,
        num_repeats=samples.candidate.size,
        candidate=candidate,
        baseline=baseline,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        noisy=noise is not None,
        noise=noise,
    )


def _timing(seconds: Seconds, new_tokens: int) -> Timing:
    p50, p90 = (float(value) for value in np.percentile(seconds, (50, 90)))
    return Timing(p50_ms=p50 * 1e3, p90_ms=p90 * 1e3, tokens_per_second=new_tokens / p50)


def _noise(baseline: Timing, ratio: float, width: float) -> str | None:
    reasons: list[str] = []
    if (spread := baseline.p90_ms / baseline.p50_ms) > MAX_SPREAD:
        reasons.append(f"the baseline's p90 is {spread:.2f} times its p50 (limit {MAX_SPREAD})")
    if width / ratio > MAX_INTERVAL_WIDTH:
        reasons.append(f"the ratio's interval is {width / ratio:.0%} wide (limit {MAX_INTERVAL_WIDTH:.0%})")
    return "; ".join(reasons) or None
