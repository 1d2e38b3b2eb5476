"""Rows of a bench, written by hand."""

from __future__ import annotations

from hlap_export.bench.report import LatencyRow, Limit, Phase, Timing


def latency_row(
    phase: Phase,
    num_tokens: int,
    candidate_ms: float,
    baseline_ms: float,
    *,
    batch: int = 1,
    width: float = 0.02,
) -> LatencyRow:
    """A row whose intervals reach `width`, relative, to both sides."""
    ratio = candidate_ms / baseline_ms
    return LatencyRow(
        phase=phase,
        batch=batch,
        num_tokens=num_tokens,
        num_rounds=5,
        num_repeats=100,
        candidate=_timing(candidate_ms, width),
        baseline=_timing(baseline_ms, width),
        ratio=ratio,
        ratio_low=ratio * (1 - width),
        ratio_high=ratio * (1 + width),
        candidate_limit=Limit(flops=10**6, bytes=10**6, min_ms=candidate_ms / 2, bound_by="memory"),
        baseline_limit=Limit(flops=10**6, bytes=10**6, min_ms=baseline_ms / 2, bound_by="memory"),
        limit_ratio=ratio,
        noisy=False,
        noise=None,
    )


def _timing(milliseconds: float, width: float) -> Timing:
    return Timing(
        p50_ms=milliseconds,
        p50_low_ms=milliseconds * (1 - width),
        p50_high_ms=milliseconds * (1 + width),
        p90_ms=milliseconds * 1.1,
        p99_ms=milliseconds * 1.3,
        tokens_per_second=1e3 / milliseconds,
    )
