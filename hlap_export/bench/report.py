"""What `bench` measured, as JSON: times, ratios with intervals, memory and sizes, and on which machine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Timing(_Record):
    """One engine on one length."""

    p50_ms: float
    p90_ms: float
    tokens_per_second: float
    """New tokens per second at the median time."""


class LatencyRow(_Record):
    """Candidate and baseline on one length, timed alternately; the ratio is that of the medians."""

    phase: Literal["prefill", "decode"]
    num_tokens: int
    """Prefill: tokens of the prompt. Decode: tokens already in the cache when one more is run."""
    num_repeats: int
    candidate: Timing
    baseline: Timing
    ratio: float
    """Candidate / baseline: below 1 where the candidate is faster."""
    ratio_low: float
    """Lower end of the 95% bootstrap interval over the alternating pairs."""
    ratio_high: float
    noisy: bool
    noise: str | None
    """Why the row is not to be trusted to its last digit."""


class AdjustedLength(_Record):
    """A length that was asked for and couldn't be used as it is."""

    phase: Literal["prefill", "decode"]
    asked: int
    used: int | None
    """None where it was left out."""
    reason: str


class MemoryRow(_Record):
    """One engine, alone in a fresh process that loads it, runs one prefill and one decode step."""

    peak_rss_bytes: int
    """Peak resident memory of that process, Python and the engine's libraries included."""
    rss_before_load_bytes: int
    """Resident memory of it before the engine's files are opened."""
    kv_bytes_per_token: int
    engine_file_bytes: int
    """All files of the engine folder but the manifest."""
    weight_bytes: int | None


class BenchReport(_Record):
    """How fast and how large an engine is, against the dense engine."""

    format: Literal["hlap-export/bench/1"] = "hlap-export/bench/1"
    candidate: str
    candidate_digest: str
    baseline: str
    baseline_digest: str
    engine: str
    provider: str
    dtype: str
    baseline_dtype: str
    threads: int
    batch: int
    latency: tuple[LatencyRow, ...]
    adjusted_lengths: tuple[AdjustedLength, ...]
    candidate_memory: MemoryRow
    baseline_memory: MemoryRow
    memory_prompt_length: int
    noisy: bool
    load_average_before: float | None
    """Runnable processes over the last minute, this one included."""
    load_average_after: float | None
    seed: int
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
