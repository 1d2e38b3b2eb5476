"""What `verify` found, as JSON: each check with its value, its bound and the place where it was worst."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from hlap_export.errors import CheckFailed
from hlap_export.verify.advice import advice, fault_in_words

FOLDS = "folded layers"
"""The check of the checkpoint itself; all others are of the engine."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Location(_Record):
    """One logit: `position` counts the row's real tokens from 0, padding excluded; `token` is the vocabulary index."""

    batch_row: int
    position: int
    token: int


class Check(_Record):
    """One comparison with a bound."""

    name: str
    value: float
    bound: float
    rule: Literal["at most", "at least"]
    passed: bool
    location: Location | None
    """Where the value is reached; None for a mean."""


class Divergence(_Record):
    """The first token on which the engine and the reference choose differently."""

    check: str
    batch_row: int
    position: int
    engine_token: int
    reference_token: int
    reference_margin_logits: float
    """How much higher the reference has its own choice than the engine's: near 0 for a tie."""


class Agreement(_Record):
    """How closely engine and reference agree on the tokens of one check; KL is of the engine from the reference."""

    check: str
    num_tokens: int
    max_error_ratio: float
    """max|Δlogit| / max|logit|."""
    mean_error_ratio: float
    """mean|Δlogit| / max|logit|."""
    mean_kl_nats: float
    max_kl_nats: float
    top1_agreement: float
    """Fraction of tokens for which both have the same most likely next token."""
    top5_agreement: float
    """Fraction of the reference's five most likely next tokens that are among the engine's five."""


class Greedy(_Record):
    """Most likely next token, engine against reference, over every position of every parity check."""

    agreement: float
    num_tokens: int
    first_divergence: Divergence | None
    steps_agreed: int
    """Decode steps of the first row until both choose differently for the first time, or all of them."""


class PartError(_Record):
    """A part's own error: |Δ| / |expected| of the worst token, both sides from the engine's own input to that part."""

    name: str
    error_ratio: float


class Fault(_Record):
    """Where the engine goes wrong: the first part whose own error is beyond the bound, or else the worst."""

    check: str
    """The check that was run again to find it."""
    part: str
    """"embedding", "layer 5" or "head"."""
    error_ratio: float
    bound: float
    is_beyond_bound: bool
    num_beyond_bound: int
    """Parts beyond the bound: of nearly all, the checkpoint is another one."""
    tensor: PartError | None
    """The layer's first tensor that is wrong; None outside of layers, or where the graph names none of them."""
    parts: tuple[PartError, ...]
    """Every part, in the order of computation."""


class Folds(_Record):
    """How the pruned checkpoint's layers compare with the dense ones that do what the plan says, unfolded."""

    dense: str
    dtype: str
    """Of the pruned checkpoint's weights, which were rounded to it after they were folded."""
    bound: float
    layers: tuple[PartError, ...]
    """Those that weren't fitted, which have no dense counterpart."""


class TokenSource(_Record):
    """Where the tokens came from: the evaluation text, or a seeded generator when there is no text or tokenizer."""

    kind: Literal["text", "random"]
    path: str | None
    sha256: str | None
    seed: int | None
    reason: str | None
    """Why the ids are random."""


class EnginePerplexity(_Record):
    """One engine on the evaluation windows; standard error and 95% bootstrap interval are over windows."""

    loss_nats_per_token: float
    standard_error_nats_per_token: float
    perplexity: float
    perplexity_low: float
    perplexity_high: float
    window_losses_nats_per_token: tuple[float, ...]
    """Of each window, in order: two runs on the same text can be compared window by window."""


class Perplexity(_Record):
    """Candidate and baseline on the same windows; every position after a window's first token is scored."""

    num_windows: int
    window_length: int
    num_scored_tokens: int
    candidate: EnginePerplexity
    baseline: EnginePerplexity | None
    loss_increase_nats_per_token: float | None
    """Candidate minus baseline, mean over windows."""
    loss_increase_standard_error_nats_per_token: float | None
    """Of the difference window by window: much smaller than either engine's own, for the windows are the same."""
    increase_ratio: float | None
    """Candidate's perplexity / baseline's - 1."""
    increase_ratio_low: float | None
    """Lower end of its 95% interval: windows are resampled, each with both engines' losses."""
    increase_ratio_high: float | None


class VerifyReport(_Record):
    """Whether an engine computes what its checkpoint means, and how well it predicts text."""

    format: Literal["hlap-export/verify/1"] = "hlap-export/verify/1"
    candidate: str
    candidate_digest: str
    reference: str
    reference_digest: str
    reference_streamed_layers: int = 0
    """Layers of the reference that were loaded one at a time, because memory had no room for all of them. Every layer
    is compared either way."""
    baseline: str | None
    baseline_digest: str | None
    engine: str
    provider: str
    dtype: str
    threads: int
    tokens: TokenSource
    prompt_lengths: tuple[int, ...]
    """Real tokens in each row of the padded batch; the first is also the prompt of the single-row checks."""
    num_decode_steps: int
    context_length: int
    """Tokens of the longest sequence that was checked; 0 where none was longer than the others."""
    context_limit: int
    """Tokens that the model has positions for and the engine has room for."""
    checks: tuple[Check, ...]
    agreement: tuple[Agreement, ...]
    greedy: Greedy
    fault: Fault | None
    """After a failed check, where the engine can be looked into; also without one if it was asked for."""
    folds: Folds | None
    """Where the dense checkpoint was given."""
    perplexity: Perplexity | None
    passed: bool
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _passed_means_every_check(self) -> Self:
        if self.passed != all(check.passed for check in self.checks):
            raise ValueError("passed must say whether every check passed")
        return self

    def require_passed(self) -> None:
        """Do nothing if every check passed.

        Raises:
            CheckFailed: names the first failed check, its value, its bound, where it is worst, and what to try.
        """
        failed = [check for check in self.checks if not check.passed]
        if not failed:
            return
        worst = failed[0]
        if worst.name == FOLDS and self.folds is not None:
            raise _fold_failed(self.reference, self.folds)
        place = worst.location
        where = f" at batch row {place.batch_row}, position {place.position}, token {place.token}" if place else ""
        fault = f", {fault_in_words(self.fault)}" if self.fault else ""
        others = f"; also failed: {', '.join(check.name for check in failed[1:])}" if failed[1:] else ""
        raise CheckFailed(
            where=f"{self.candidate} against {self.reference}, check {worst.name!r}",
            expected=f"{worst.rule} {worst.bound:g} ({self.dtype})",
            found=f"{worst.value:.3g}{where}{fault}{others}",
            fix=advice({check.name for check in self.checks if check.passed}, self.fault),
        )


def _fold_failed(reference: str, folds: Folds) -> CheckFailed:
    """The error for a checkpoint that isn't what its plan makes of the dense one: names the first wrong layer."""
    beyond = [layer for layer in folds.layers if layer.error_ratio > folds.bound]
    return CheckFailed(
        where=f"{reference} against {folds.dense} under its plan, {beyond[0].name}",
        expected=f"the dense layer, masked and scaled, within {folds.bound:g} of its size ({folds.dtype})",
        found=f"{beyond[0].error_ratio:.1e}" + (f"; also {len(beyond) - 1} other layers" if beyond[1:] else ""),
        fix="prune again with that plan; if nearly all layers differ, pass the dense model that it was made from",
    )
