"""What a gate decided, as JSON."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from hlap_export.errors import CheckFailed
from hlap_export.gate.results import Estimate

Outcome = Literal["passed", "failed", "unclear", "skipped"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Verdict(_Record):
    """One rule on one metric."""

    rule: str
    """In words: "at most +5% against accepted"."""
    metric: str
    """In words: "decode_ms after 2048 tokens"."""
    name: str
    """The metric's name alone."""
    outcome: Outcome
    """Unclear: the interval reaches over the bound. Skipped: there was nothing to compare with."""
    reason: str | None
    """Why it is unclear or skipped, or failed for another reason than the bound."""
    bound: float
    found: Estimate | None
    """What is held against the bound: the value, or value / reference where the rule is relative; None where either is
    0."""
    value: float | None
    """The candidate's."""
    reference: float | None
    """What it is relative to; None where the bound is on the value itself."""
    noise: str | None
    source: str | None
    """File and place that the value is from."""


class GateReport(_Record):
    """Whether a candidate may ship."""

    format: Literal["hlap-export/gate/1"] = "hlap-export/gate/1"
    candidate: str
    candidate_digest: str
    baseline: str
    baseline_digest: str | None
    """None where nothing has been accepted yet."""
    rules: str
    rules_sha256: str
    verdicts: tuple[Verdict, ...]
    num_passed: int
    num_failed: int
    num_unclear: int
    num_skipped: int
    passed: bool
    """Whether no rule failed."""
    accepted: bool
    """Whether the candidate has become the baseline."""

    def require_passed(self) -> None:
        """Do nothing if no rule failed.

        Raises:
            CheckFailed: names the first that did.
        """
        failed = [verdict for verdict in self.verdicts if verdict.outcome == "failed"]
        if not failed:
            return
        first = failed[0]
        others = f"; also failed: {len(failed) - 1} more" if failed[1:] else ""
        raise CheckFailed(
            where=f"{self.candidate}, {first.metric}",
            expected=first.rule,
            found=(in_words(first) if first.found is not None else first.reason or in_words(first)) + others,
            fix="undo what made it worse; if it is meant, change the rule in "
            f"{self.rules}, or for a rule against the accepted run pass --accept",
        )


def in_words(verdict: Verdict) -> str:
    """What was found, in words: "+11.2% (+9.8 to +12.7%)", "12.1 (11.9 to 12.3)", "0 instead of 0.6"."""
    if verdict.found is None:
        if verdict.value is None or verdict.reference is None:
            return "not measured"
        return f"{_as_value(verdict.value)} instead of {_as_value(verdict.reference)}"
    found = verdict.found
    show = _as_change if verdict.reference is not None else _as_value
    value, low, high = show(found.value), show(found.low), show(found.high)
    return value if low == high else f"{value} ({low.rstrip('%')} to {high})"


def _as_change(ratio: float) -> str:
    return f"{'-' if round(ratio - 1, 3) < 0 else '+'}{abs(ratio - 1):.1%}"


def _as_value(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
