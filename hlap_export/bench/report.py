"""What `bench` measured, as JSON: times, ratios with intervals, limits, memory and sizes, and on which machine."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Phase = Literal["prefill", "decode"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Timing(_Record):
    """One engine on one point: a batch and a length."""

    p50_ms: float
    p50_low_ms: float
    """Lower end of the median's 95% bootstrap interval."""
    p50_high_ms: float
    p90_ms: float
    p99_ms: float
    tokens_per_second: float
    """New tokens of all rows per second, at the median time."""


class Limit(_Record):
    """What one step must compute and move at the least, and how long this machine needs for that."""

    flops: int
    """Multiplications and additions of matrix products."""
    bytes: int
    """Weights, read once, and the cache, read and appended to."""
    min_ms: float | None
    """The longer of FLOPs / speed of arithmetic and bytes / speed of memory; None where no speed was measured."""
    bound_by: Literal["arithmetic", "memory"] | None
    """Which of the two it is."""


class LatencyRow(_Record):
    """Candidate and baseline on one point, timed alternately; the ratio is that of the medians."""

    phase: Phase
    """Prefill: a whole prompt, which is the time to the first token. Decode: one more token."""
    batch: int
    """Rows that run together."""
    num_tokens: int
    """Prefill: tokens of each prompt. Decode: tokens already in the cache of each row when one more is run."""
    num_rounds: int
    """How often both engines were loaded anew to time this point."""
    num_repeats: int
    """Timed pairs, of all rounds together."""
    candidate: Timing
    baseline: Timing
    ratio: float
    """Candidate / baseline: below 1 where the candidate is faster."""
    ratio_low: float
    """Lower end of the ratio's 95% bootstrap interval, over rounds and the pairs in them."""
    ratio_high: float
    candidate_limit: Limit
    baseline_limit: Limit
    limit_ratio: float
    """The ratio if steps took just the time of what is counted: FLOPs for a prefill, bytes for a decode step, or
    `min_ms` of both where the machine's speed was measured."""
    noisy: bool
    noise: str | None
    """Why the row is not to be trusted to its last digit."""


class Extrapolation(_Record):
    """A decode step after more tokens than were timed: the straight line through the timed ones, drawn further.

    Not a measurement. The interval is the line's own; it can't know of caches that overflow beyond the last point.
    """

    batch: int
    num_tokens: int
    longest_timed: int
    """Tokens in the cache at the last measured point of the line."""
    candidate_ms: float
    candidate_low_ms: float
    candidate_high_ms: float
    baseline_ms: float
    baseline_low_ms: float
    baseline_high_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float


class AdjustedLength(_Record):
    """A length that was asked for and couldn't be used as it is."""

    phase: Phase
    asked: int
    used: int | None
    """None where it was left out."""
    reason: str


class MemoryRow(_Record):
    """One engine, alone in a fresh process that loads it, runs one prefill and one decode step of the largest batch."""

    peak_rss_bytes: int
    """Peak resident memory of that process, Python and the engine's libraries included: the median of several."""
    peak_rss_low_bytes: int
    """Of the process that needed the least."""
    peak_rss_high_bytes: int
    rss_before_load_bytes: int
    """Resident memory of it before the engine's files are opened."""
    kv_bytes_per_token: int
    """Of one row of a batch."""
    engine_file_bytes: int
    """All files of the engine folder but the manifest."""
    weight_bytes: int | None


class ReadSpeed(_Record):
    """How fast a buffer of this size is read when a matrix in it is multiplied by a vector."""

    buffer_bytes: int
    bytes_per_second: float


class MachineSpeed(_Record):
    """What this machine reaches in the two things that limits are counted in, with the bench's number of threads."""

    flops_per_second: float
    """Of a large float32 matrix product."""
    reads: tuple[ReadSpeed, ...]
    """From buffers that fit the caches to those that don't."""


class GpuState(_Record):
    """What nvidia-smi says of one GPU."""

    name: str
    clock_mhz: float | None
    power_watts: float | None
    temperature_celsius: float | None
    memory_used_bytes: int | None


class MachineState(_Record):
    """The machine at one moment; None is what it doesn't say."""

    load_average: float | None
    """Runnable processes over the last minute, this one included."""
    clock_mhz: float | None
    """Mean over the usable cores."""
    governor: str | None
    """What sets the clock: "performance", "powersave", ..."""
    temperature_celsius: float | None
    """The hottest sensor."""
    memory_free_bytes: int | None
    gpus: tuple[GpuState, ...]


class Conditions(_Record):
    """What happened on the machine meanwhile."""

    before: MachineState
    after: MachineState
    other_cpu_ratio: float | None
    """Share of the machine's CPU time that other processes took."""
    stolen_cpu_ratio: float | None
    """Share of it that the hypervisor gave to other machines."""
    power_watts: float | None
    """Of the processor packages, mean over the bench."""
    disturbed: tuple[str, ...]
    """What was beyond its limit; empty on a machine that did nothing else."""


class BenchReport(_Record):
    """How fast and how large an engine is, against the dense engine."""

    format: Literal["hlap-export/bench/2"] = "hlap-export/bench/2"
    candidate: str
    candidate_digest: str
    baseline: str
    baseline_digest: str
    engine: str
    provider: str
    dtype: str
    baseline_dtype: str
    threads: int
    batches: tuple[int, ...]
    latency: tuple[LatencyRow, ...]
    extrapolated: tuple[Extrapolation, ...]
    """Longer contexts than were timed, up to the model's positions."""
    adjusted_lengths: tuple[AdjustedLength, ...]
    candidate_memory: MemoryRow
    baseline_memory: MemoryRow
    memory_prompt_length: int
    memory_batch: int
    noisy: bool
    """Whether any row is, or the machine was disturbed."""
    speed: MachineSpeed | None
    """None where an accelerator runs the engine, whose limits aren't measured, or where measuring failed."""
    conditions: Conditions
    seed: int
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
