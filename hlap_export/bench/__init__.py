"""Bench: latency against the dense engine, peak memory, sizes."""

from hlap_export.bench.bench import BenchOptions, bench
from hlap_export.bench.report import AdjustedLength, BenchReport, LatencyRow, MemoryRow, Timing

__all__ = ["AdjustedLength", "BenchOptions", "BenchReport", "LatencyRow", "MemoryRow", "Timing", "bench"]
