"""Medians and ratios of timed pairs, with intervals that know of rounds and of drift.

Repeats of a step aren't independent. A busy neighbour slows many in a row, and each loading of an engine has its own
luck with memory: rounds differ by more than the repeats inside them say. A bootstrap that picks single pairs misses
both, and its "95%" intervals then hold the truth 30 to 85 times in a hundred. This one picks whole rounds; and because
a handful of them tells little of how rounds differ, the interval is stretched as Student's t stretches it (Hesterberg
2015, "What teachers should know about the bootstrap"). A single round is resampled in blocks of neighbouring pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hlap_export.bench.report import Timing
from hlap_export.quantiles import normal, student_t

Seconds = NDArray[np.float64]
Picks = NDArray[np.int64]

BOOTSTRAP_SAMPLES = 1000
LEVEL = (2.5, 97.5)
Z = normal()
# What an idle machine stays below; beyond it the last digits mean nothing.
MAX_SPREAD = 1.25
MAX_INTERVAL_WIDTH = 0.10


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Durations of pairs, in seconds; index i of both ran right after each other.

    Attributes:
        candidate: one duration for each pair.
        baseline: likewise.
        round_sizes: how many pairs each round has, in order; they add up to all of them.
    """

    candidate: Seconds
    baseline: Seconds
    round_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.candidate.size == self.baseline.size == sum(self.round_sizes), "pairs, in whole rounds"

    @classmethod
    def joined(cls, rounds: list[Samples]) -> Samples:
        """All rounds, one after another."""
        return cls(
            candidate=np.concatenate([each.candidate for each in rounds]),
            baseline=np.concatenate([each.baseline for each in rounds]),
            round_sizes=tuple(size for each in rounds for size in each.round_sizes),
        )

    @cached_property
    def ratio(self) -> float:
        """Median of the candidate / median of the baseline."""
        return float(np.median(self.candidate) / np.median(self.baseline))


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A 95% interval."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """Those of one point: of both medians, in seconds, and of their ratio."""

    candidate: Interval
    baseline: Interval
    ratio: Interval


def intervals(samples: Samples, *, seed: int) -> Intervals:
    """Bootstrap both medians and their ratio, pairs resampled together."""
    picks, counts = _picks(samples.round_sizes, np.random.default_rng(seed))
    candidates, baselines = (
        np.repeat(np.median(seconds[picks], axis=1), counts) for seconds in (samples.candidate, samples.baseline)
    )
    stretch = _stretch(len(samples.round_sizes))
    return Intervals(
        candidate=_interval(candidates, float(np.median(samples.candidate)), stretch),
        baseline=_interval(baselines, float(np.median(samples.baseline)), stretch),
        ratio=_interval(candidates / baselines, samples.ratio, stretch),
    )


def timing(seconds: Seconds, median: Interval, new_tokens: int) -> Timing:
    """One engine's part of a row; `new_tokens` is what one step adds, over all rows of the batch."""
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, (50, 90, 99)))
    return Timing(
        p50_ms=p50 * 1e3,
        p50_low_ms=median.low * 1e3,
        p50_high_ms=median.high * 1e3,
        p90_ms=p90 * 1e3,
        p99_ms=p99 * 1e3,
        tokens_per_second=new_tokens / p50,
    )


def noise(baseline: Seconds, ratio: float, interval: Interval) -> str | None:
    """Why a row isn't to be trusted to its last digit; None if it is."""
    reasons: list[str] = []
    p50, p90 = np.percentile(baseline, (50, 90))
    if (spread := float(p90 / p50)) > MAX_SPREAD:
        reasons.append(f"the baseline's p90 is {spread:.2f} times its p50 (limit {MAX_SPREAD})")
    if (width := (interval.high - interval.low) / ratio) > MAX_INTERVAL_WIDTH:
        reasons.append(f"the ratio's interval is {width:.0%} wide (limit {MAX_INTERVAL_WIDTH:.0%})")
    return "; ".join(reasons) or None


def _picks(round_sizes: tuple[int, ...], random: np.random.Generator) -> tuple[Picks, Picks]:
    """Indices [samples, pairs] of pairs: whole rounds with replacement, or blocks of a single one.

    A few rounds can be picked in a few ways only: each way is there once, and the second array says how often.
    """
    sizes = np.array(round_sizes)
    if sizes.size == 1:
        return _blocks(round_sizes[0], random), np.ones(BOOTSTRAP_SAMPLES, np.int64)
    picked = np.sort(random.integers(0, sizes.size, (BOOTSTRAP_SAMPLES, sizes.size)), axis=1)
    rounds, counts = np.unique(picked, axis=0, return_counts=True)
    first = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    # Rounds are of nearly the same size: those that are smaller begin again, those that are larger end early.
    within = np.arange(int(np.median(sizes))) % sizes[rounds][..., None]
    return (within + first[rounds][..., None]).reshape(len(rounds), -1), counts


def _blocks(size: int, random: np.random.Generator) -> Picks:
    """Blocks of neighbours that may wrap around (Politis and Romano 1992)."""
    length = max(1, round(size ** (1 / 3)))
    starts = random.integers(0, size, (BOOTSTRAP_SAMPLES, -(-size // length), 1))
    return ((starts + np.arange(length)) % size).reshape(BOOTSTRAP_SAMPLES, -1)[:, :size]


def _interval(values: Seconds, point: float, stretch: float) -> Interval:
    """Percentiles of the bootstrap, drawn apart about `point` on the scale of ratios, which holds it in any case."""
    low, high = (float(value) for value in np.percentile(values, LEVEL))
    return Interval(low=point * min(1.0, (low / point) ** stretch), high=point * max(1.0, (high / point) ** stretch))


def _stretch(num_rounds: int) -> float:
    """How much wider Student's interval is than the normal one, with the bias of the variance of so few rounds."""
    if num_rounds == 1:
        return 1.0  # nothing is known of how rounds differ
    return student_t(num_rounds - 1) / Z * math.sqrt(num_rounds / (num_rounds - 1))
