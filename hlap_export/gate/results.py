"""What a gate judges: the numbers of a run with their intervals, each with the file that it is from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

MetricName = Literal[
    "failed_checks",
    "check",
    "greedy_agreement",
    "perplexity",
    "score",
    "prefill_ms",
    "decode_ms",
    "prefill_ratio",
    "decode_ratio",
    "peak_memory_bytes",
    "engine_bytes",
    "weight_bytes",
    "kv_bytes_per_token",
]
"""What each is:

failed_checks       how many of verify's checks failed
check               the value of one of them, by name
greedy_agreement    fraction of tokens on which engine and PyTorch agree
perplexity          on the evaluation text
score               on one of lm_eval's tasks, by the names of task and metric
prefill_ms          time of a prompt, which is the time to the first token
decode_ms           time of one more token
prefill_ratio       the candidate's time / the dense engine's in the same bench: other machines have nearly the same
decode_ratio        likewise
peak_memory_bytes   of a process that runs the engine on the longest prompts, median and span of three
engine_bytes        of its files
weight_bytes        of the weights in them
kv_bytes_per_token  of the cache
"""

Key = tuple[str, int | None, int | None, str | None, str | None]
TIMES = ("prefill_ms", "decode_ms")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Estimate(_Record):
    """A number and its 95% interval; where nothing is random, all three are the same."""

    value: float
    low: float
    high: float
    freedom: int | None = None
    """Degrees of freedom that the interval is from; None for endlessly many."""

    @classmethod
    def exactly(cls, value: float) -> Estimate:
        """Of something that was counted."""
        return cls(value=value, low=value, high=value)


class Windows(_Record):
    """Losses of a text's windows, so that two engines can be compared window by window."""

    text: str
    """What was scored: digest of the text, number of windows, their length. Only equal ones can be paired."""
    losses_nats_per_token: tuple[float, ...]


class Metric(_Record):
    """One number of a run."""

    name: MetricName
    batch: int | None = None
    tokens: int | None = None
    """Of the prompt, or in the cache."""
    check: str | None = None
    task: str | None = None
    """Names of lm_eval's task, metric and filter: "arc_easy acc"."""
    estimate: Estimate
    to_dense: Estimate | None = None
    """Candidate / dense engine of the same run, measured together; None where nothing dense was."""
    dense: Estimate | None = None
    """The dense engine's own, where 0 is in one of the intervals and there is no ratio."""
    windows: Windows | None = None
    noise: str | None = None
    source: str
    """File and place that the number is from: "bench.json#/latency/3"."""

    @property
    def key(self) -> Key:
        """What makes two metrics of two runs the same one."""
        return self.name, self.batch, self.tokens, self.check, self.task

    @property
    def label(self) -> str:
        """The metric in words: "decode_ms after 2048 tokens, batch 4"."""
        words = " ".join(filter(None, (self.name, self.check and repr(self.check), self.task)))
        if self.tokens is not None:
            words += f" {'after' if self.name.startswith('decode') else 'of'} {self.tokens} tokens"
        return words if self.batch in (None, 1) else f"{words}, batch {self.batch}"


class Origin(_Record):
    """The report that metrics are from."""

    file: str
    sha256: str


class Results(_Record):
    """All that a gate knows of a run."""

    format: Literal["hlap-export/results/1"] = "hlap-export/results/1"
    candidate_digest: str
    dense_digest: str | None
    dtype: str | None
    threads: int | None
    """None where nothing was run that depends on it, or the report doesn't say."""
    machine: dict[str, Any]
    versions: dict[str, str]
    disturbed: tuple[str, ...]
    """What else the machine did while it was timed."""
    origins: tuple[Origin, ...]
    metrics: tuple[Metric, ...]

    @property
    def by_key(self) -> dict[Key, Metric]:
        """Metrics by what they are of."""
        return {metric.key: metric for metric in self.metrics}
