"""Decode after more tokens than were timed: the straight line through what was.

A decode step reads its weights, which takes the same time always, and its cache, which takes a time in proportion to
its length. So times lie on a line over the context, as long as no cache of the CPU overflows on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hlap_export.bench.report import Extrapolation, LatencyRow
from hlap_export.bench.statistics import Z

MIN_POINTS = 2
STEP = 2
"""Each further context is so many times the one before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Estimate:
    """A time in ms and its standard error."""

    value: float
    error: float


def extrapolate(rows: Sequence[LatencyRow], *, longest: int) -> tuple[Extrapolation, ...]:
    """Contexts beyond the longest timed one, doubling, up to `longest`; none without two timed contexts.

    Args:
        rows: what was timed; prefills aren't looked at.
        longest: tokens that the model has positions for before one more.
    """
    found: list[Extrapolation] = []
    for batch in sorted({row.batch for row in rows}):
        timed = sorted(
            (row for row in rows if row.phase == "decode" and row.batch == batch), key=lambda row: row.num_tokens
        )
        if len(timed) >= MIN_POINTS:
            found += [_at(timed, context) for context in _contexts(timed[-1].num_tokens, longest)]
    return tuple(found)


def _contexts(last: int, longest: int) -> list[int]:
    contexts: list[int] = []
    while last < longest:
        last = min(last * STEP, longest)
        contexts.append(last)
    return contexts


def _at(timed: Sequence[LatencyRow], context: int) -> Extrapolation:
    lengths = [row.num_tokens for row in timed]
    ours = _line(
        lengths, [_estimate(t.p50_ms, t.p50_low_ms, t.p50_high_ms) for t in (r.candidate for r in timed)], context
    )
    theirs = _line(
        lengths, [_estimate(t.p50_ms, t.p50_low_ms, t.p50_high_ms) for t in (r.baseline for r in timed)], context
    )
    ratio = ours.value / theirs.value
    error = math.hypot(ours.error / ours.value, theirs.error / theirs.value)
    return Extrapolation(
        batch=timed[0].batch,
        num_tokens=context,
        longest_timed=lengths[-1],
        candidate_ms=ours.value,
        candidate_low_ms=max(0.0, ours.value - Z * ours.error),
        candidate_high_ms=ours.value + Z * ours.error,
        baseline_ms=theirs.value,
        baseline_low_ms=max(0.0, theirs.value - Z * theirs.error),
        baseline_high_ms=theirs.value + Z * theirs.error,
        ratio=ratio,
        ratio_low=ratio * math.exp(-Z * error),
        ratio_high=ratio * math.exp(Z * error),
    )


def _estimate(value: float, low: float, high: float) -> _Estimate:
    # A clock's resolution is a floor: times that agree to the last digit would weigh infinitely.
    return _Estimate(value=value, error=max((high - low) / (2 * Z), 1e-3 * value))


def _line(lengths: Sequence[int], times: Sequence[_Estimate], context: int) -> _Estimate:
    """Weighted least squares at `context`; where points miss the line by more than their errors, those are enlarged."""
    weights = [1 / time.error**2 for time in times]
    total = sum(weights)
    mean_x = sum(w * x for w, x in zip(weights, lengths, strict=True)) / total
    mean_y = sum(w * t.value for w, t in zip(weights, times, strict=True)) / total
    spread = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, lengths, strict=True))
    slope = sum(w * (x - mean_x) * (t.value - mean_y) for w, x, t in zip(weights, lengths, times, strict=True)) / spread
    misfit = sum(
        w * (t.value - mean_y - slope * (x - mean_x)) ** 2 for w, x, t in zip(weights, lengths, times, strict=True)
    )
    freedom = len(times) - 2
    enlarged = max(1.0, misfit / freedom) if freedom else 1.0
    return _Estimate(
        value=mean_y + slope * (context - mean_x),
        error=math.sqrt(enlarged * (1 / total + (context - mean_x) ** 2 / spread)),
    )
