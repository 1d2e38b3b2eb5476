"""What a run found, in one value: `summary.json` is this, and the screen and `report.md` are drawn from it alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hlap_export.errors import ArtefactError, CheckFailed

SUMMARY = "summary.json"
KV_CACHE = "KV cache per token"
ENGINE_ON_DISK = "engine on disk"

Phase = Literal["prefill", "decode"]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerRow(_Result):
    """One layer after pruning.

    Alpha is the factor that the search gave to what is left of the attention, 0 where nothing is; None where the
    attention is not rescaled, or the artefact doesn't say. `mlp`: as it was, its last weight fitted anew, or gone.
    """

    layer: int
    attention: Literal["full", "value_only", "linear", "skip"]
    num_heads: int
    num_kv_heads: int
    alpha: float | None
    is_pruned: bool
    mlp: Literal["keep", "refit", "skip"] = "keep"


class Text(_Result):
    """The text behind a number: how many windows of how many tokens of it were scored."""

    name: str
    num_windows: int
    window_length: int


class Size(_Result):
    """One thing that pruning makes smaller."""

    name: str
    unit: Literal["bytes", "count"]
    dense: int
    pruned: int

    @property
    def removed_ratio(self) -> float:
        return 1 - self.pruned / self.dense if self.dense else 0.0


class Perplexity(_Result):
    """Perplexity of the dense and of the pruned model on one text.

    The two alternatives show what the search for alpha is worth: the same layers with alpha 1 (the attention
    output unscaled) and with the attention dropped (alpha 0); None where no search measured them. `increase_ratio` is
    pruned / dense - 1 with its 95 % interval, both models on the same windows; None where it wasn't estimated.
    """

    text: Text
    measured_on: str
    dense: float
    pruned: float
    all_ones: float | None = None
    all_dropped: float | None = None
    increase_ratio_low: float | None = None
    increase_ratio_high: float | None = None

    @property
    def increase_ratio(self) -> float:
        return self.pruned / self.dense - 1


class AlphaCurve(_Result):
    """What decided one layer's alpha: perplexity of the whole model on the calibration text, alpha by alpha."""

    layer: int
    alphas: tuple[float, ...]
    perplexities: tuple[float, ...]
    chosen: float


class Removal(_Result):
    """The model with one more part removed: what it costs and saves, relative to the dense one.

    `increase_ratio` is of the perplexity on calibration windows that nothing was fitted on, with its 95 % interval;
    `latency_ratio` is counted from the work of a step, or measured where the method did that.
    """

    removed: str
    increase_ratio: float
    increase_ratio_low: float
    increase_ratio_high: float
    kv_ratio: float
    weight_ratio: float
    latency_ratio: float
    is_chosen: bool


class RemovalCurve(_Result):
    """All steps that a method went, the dense model first; `is_own` where it is the method of the plan."""

    method: str
    is_own: bool
    points: tuple[Removal, ...]


class Origin(_Result):
    """What one artefact or document of a run is, and which others it was made from: digests are SHA-256."""

    name: str
    digest: str
    made_from: dict[str, str]


class Check(_Result):
    """One comparison of the engine with the PyTorch model; logit errors are relative to the largest logit."""

    name: str
    value: float
    bound: float
    rule: Literal["at most", "at least"]
    passed: bool


class Agreement(_Result):
    """How closely engine and PyTorch model agree on the tokens of one check; KL is of the engine from the model."""

    check: str
    num_tokens: int
    mean_error_ratio: float
    mean_kl_nats: float
    max_kl_nats: float
    top1_agreement: float
    top5_agreement: float


class Timing(_Result):
    """Time of one step of one engine.

    `low` and `high` are the median's 95 % interval; `limit` is what the step's arithmetic and memory traffic need at
    the least on this machine; `tokens_per_second` are new ones, of all rows. None is what wasn't measured.
    """

    p50_ms: float
    p50_low_ms: float | None
    p50_high_ms: float | None
    p90_ms: float
    p99_ms: float | None
    limit_ms: float | None
    tokens_per_second: float | None = None


class Latency(_Result):
    """One step, dense against pruned, measured alternately in one process.

    `speedup` is dense / pruned, medians; `low` and `high` are its 95 % interval; `limit_speedup` is what the counted
    work lets expect; `noise` says why not to trust the row.
    """

    phase: Phase
    batch: int
    num_tokens: int
    dense: Timing
    pruned: Timing
    speedup: float
    speedup_low: float
    speedup_high: float
    limit_speedup: float | None
    noise: str | None


class Extrapolated(_Result):
    """A decode step after more tokens than were timed: the line through the timed ones, drawn further."""

    batch: int
    num_tokens: int
    longest_timed: int
    dense_ms: float
    pruned_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float


class PhaseBuild(_Result):
    """What a compiler made of one phase: kernels, and how many of them are a layer's whole attention."""

    phase: Phase
    num_kernels: int
    num_fused_attention: int


class EngineBuild(_Result):
    """One engine as its compiler made it."""

    name: str
    compiler: str
    size_bytes: int
    build_seconds: float
    capacity: int
    """Tokens that a row's KV cache holds."""
    kv_bytes_per_row: int
    num_kv_bindings: int
    """Inputs that hold keys or values: two for each layer that attends."""
    phases: tuple[PhaseBuild, ...]


class Summary(_Result):
    """The result of a run; every unit is in a name."""

    format: Literal["hlap-export/summary/2"] = "hlap-export/summary/2"
    model: str
    family: str
    method: str
    engine: str
    flavour: str
    dtype: str
    threads: int
    layers: tuple[LayerRow, ...]
    sizes: tuple[Size, ...]
    perplexities: tuple[Perplexity, ...]
    search: tuple[AlphaCurve, ...]
    removals: tuple[RemovalCurve, ...] = ()
    checks: tuple[Check, ...]
    agreement: tuple[Agreement, ...] = ()
    greedy_agreement: float
    fault: str | None = None
    """Where the engine goes wrong first, in words, if a check failed and the engine could be looked into."""
    latency: tuple[Latency, ...]
    extrapolated: tuple[Extrapolated, ...]
    is_noisy: bool
    disturbed: tuple[str, ...]
    """What else the machine was busy with while it timed."""
    conditions: dict[str, Any]
    """What the machine was like meanwhile, as far as it says."""
    machine: dict[str, Any]
    versions: dict[str, str]
    origins: tuple[Origin, ...]
    builds: tuple[EngineBuild, ...] = ()
    """What the compiler made, where it tells."""
    measured_instead: str | None = None
    """Why the engines themselves weren't verified and timed here, and what was verified in their place."""

    @property
    def has_stars(self) -> bool:
        """Whether repeats of any row spread so widely that it is marked; the machine alone may have been busy."""
        return any(row.noise for row in self.latency)

    @property
    def passed(self) -> bool:
        """Whether every check held."""
        return all(check.passed for check in self.checks)

    def require_passed(self) -> None:
        """Do nothing if every check held.

        Raises:
            CheckFailed: names the first that didn't.
        """
        for check in self.checks:
            if not check.passed:
                raise CheckFailed(
                    where=f"the pruned engine, check {check.name!r}",
                    expected=f"{check.rule} {check.bound:g}",
                    found=f"{check.value:.3g}" + (f", {self.fault}" if self.fault else ""),
                    fix="verify.json says where it is worst; `hlap-export verify` repeats the check alone",
                )

    @property
    def pruned_layers(self) -> tuple[LayerRow, ...]:
        """The layers that the plan changed."""
        return tuple(row for row in self.layers if row.is_pruned)


def read_summary(run: Path) -> Summary:
    """The result of a finished run.

    Raises:
        ArtefactError: the folder isn't a finished run's, or another version of hlap-export wrote it.
    """
    path = run / SUMMARY
    try:
        return Summary.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtefactError(
            where=str(run),
            expected="the folder of a finished run",
            found=f"no {SUMMARY}" if run.is_dir() else "no such folder",
            fix="pass the --out of `hlap-export run`; --resume finishes a run that was stopped",
        ) from error
    except ValidationError as error:
        raise ArtefactError(
            where=str(path),
            expected="a summary of format hlap-export/summary/2",
            found=str(error.errors()[0]["msg"]),
            fix="`hlap-export run --resume` writes it anew from the stages' results",
        ) from error
