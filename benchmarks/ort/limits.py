"""The limit beside a measured ratio: pruned / dense of what a step must compute and move at the least."""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.bench.report import Phase
from hlap_export.bench.work import Point, step_work
from hlap_export.checkpoint import ModelLayout


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """Pruned / dense, as counted; `ratio` is the one of the two that the phase is bound by."""

    flops_ratio: float
    bytes_ratio: float
    ratio: float


def limit(pruned: ModelLayout, dense: ModelLayout, phase: Phase, num_tokens: int, *, dtype: str) -> Limit:
    """How much faster a pruned step can be, if time is what is counted: bytes for decode, FLOPs for prefill."""
    point = Point(phase=phase, num_tokens=num_tokens)
    numerator, denominator = (step_work(layout, point, dtype=dtype) for layout in (pruned, dense))
    flops_ratio = numerator.flops / denominator.flops
    bytes_ratio = numerator.bytes / denominator.bytes
    return Limit(
        flops_ratio=flops_ratio,
        bytes_ratio=bytes_ratio,
        ratio=flops_ratio if phase == "prefill" else bytes_ratio,
    )
