"""Hold metrics against rules: the whole interval must lie beyond a bound to fail, and within it to pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hlap_export.gate.change import ratio_by_windows, ratio_of
from hlap_export.gate.report import Outcome, Verdict
from hlap_export.gate.results import TIMES, Estimate, Metric, Results
from hlap_export.gate.rules import Rule, Rules

# What must agree for times of two runs to be comparable.
MACHINE_FACTS = ("cpu", "cores")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """What a rule is about on one metric, or why there is nothing to judge."""

    found: Estimate | None
    reference: float | None
    untold: str | None = None
    """Why it can't be told; the found change is shown nevertheless."""


def decide(rules: Rules, candidate: Results, accepted: Results | None) -> Iterator[Verdict]:
    """A verdict for each rule on each metric that it applies to.

    Args:
        rules: the bounds.
        candidate: what is judged.
        accepted: the run that was accepted last; None where there is none yet.
    """
    for rule in rules.rules:
        fails_unclear = (rule.unclear or rules.unclear) == "fail"
        metrics = [metric for metric in candidate.metrics if rule.applies_to(metric)]
        for metric in metrics:
            yield _settled(_judge(rule, metric, candidate, accepted), fails_unclear)
        gone = [
            metric
            for metric in (accepted.metrics if accepted and rule.against == "accepted" else ())
            if rule.applies_to(metric) and metric.key not in candidate.by_key
        ]
        for metric in gone:
            yield _unmeasured(rule, metric.label, metric.name, "the accepted run has it, the candidate hasn't")
        if not metrics and not gone:
            yield _unmeasured(rule, _asked_for(rule), rule.metric, "the candidate has no such number")


def _judge(rule: Rule, metric: Metric, candidate: Results, accepted: Results | None) -> Verdict:
    judged = _found(rule, metric, candidate, accepted)
    outcome: Outcome = "skipped"
    reason = judged.untold
    if judged.found is not None:
        outcome = "unclear" if judged.untold else _within(rule, judged.found)
        if outcome == "unclear" and reason is None:
            reason = "the interval reaches over the bound: more repeats or a calmer machine would tell"
    return Verdict(
        rule=rule.text,
        metric=metric.label,
        name=metric.name,
        outcome=outcome,
        reason=reason,
        bound=rule.bound,
        found=judged.found,
        value=metric.estimate.value,
        reference=judged.reference,
        noise=metric.noise,
        source=metric.source,
    )


def _found(rule: Rule, metric: Metric, candidate: Results, accepted: Results | None) -> _Judged:
    match rule.against:
        case None:
            return _Judged(found=metric.estimate, reference=None, untold=_disturbance(metric, candidate))
        case "dense":
            if metric.to_dense is None:
                return _Judged(found=None, reference=None, untold="no dense engine was measured beside it")
            return _Judged(found=metric.to_dense, reference=metric.estimate.value / metric.to_dense.value)
        case "accepted":
            return _against_accepted(metric, candidate, accepted)


def _against_accepted(metric: Metric, candidate: Results, accepted: Results | None) -> _Judged:
    if accepted is None:
        return _Judged(found=None, reference=None, untold="nothing has been accepted yet")
    known = accepted.by_key.get(metric.key)
    if known is None:
        return _Judged(found=None, reference=None, untold="the accepted run hasn't measured it")
    if min(metric.estimate.low, known.estimate.low) <= 0:
        same = metric.estimate == known.estimate
        return _Judged(
            found=Estimate.exactly(1.0) if same else None,
            reference=known.estimate.value if same else None,
            untold=None if same else "no ratio with 0: bound the value itself",
        )
    ours, theirs = metric.windows, known.windows
    if ours is not None and theirs is not None and ours.text == theirs.text:
        found = ratio_by_windows(ours, theirs)
    else:
        found = ratio_of(metric.estimate, known.estimate)
    untold = _difference(metric, candidate, accepted) or _disturbance(metric, candidate, accepted)
    return _Judged(found=found, reference=known.estimate.value, untold=untold)


def _difference(metric: Metric, candidate: Results, accepted: Results) -> str | None:
    """Why times of the two runs say nothing of the engines."""
    if metric.name not in TIMES:
        return None
    facts = [(name, candidate.machine.get(name), accepted.machine.get(name)) for name in MACHINE_FACTS]
    for name, ours, theirs in (*facts, ("threads", candidate.threads, accepted.threads)):
        if ours != theirs:
            ratio = metric.name.replace("_ms", "_ratio")
            return f"the accepted run is of another machine ({name}: {theirs}, here {ours}); {ratio} can be compared"
    return None


def _disturbance(metric: Metric, *runs: Results) -> str | None:
    """Times alone suffer from what else runs; ratios were measured in turn."""
    said = [reason for run in runs for reason in run.disturbed]
    return said[0] if metric.name in TIMES and said else None


def _within(rule: Rule, found: Estimate) -> Outcome:
    low, high, bound = found.low, found.high, rule.bound
    if rule.at_least is not None:
        low, high, bound = -high, -low, -bound
    # Percentages aren't exact in binary: what equals the bound is within it.
    room = 1e-9 * max(1.0, abs(bound))
    return "failed" if low > bound + room else "passed" if high <= bound + room else "unclear"


def _settled(verdict: Verdict, fails_unclear: bool) -> Verdict:
    if verdict.outcome != "unclear" or not fails_unclear:
        return verdict
    return verdict.model_copy(update={"outcome": "failed", "reason": f"unclear, which fails here: {verdict.reason}"})


def _unmeasured(rule: Rule, metric: str, name: str, reason: str) -> Verdict:
    """A rule that holds nothing must not pass: the bench may have been cut short."""
    return Verdict(
        rule=rule.text,
        metric=metric,
        name=name,
        outcome="failed",
        reason=reason,
        bound=rule.bound,
        found=None,
        value=None,
        reference=None,
        noise=None,
        source=None,
    )


def _asked_for(rule: Rule) -> str:
    where = {"batch": rule.batch, "tokens": rule.tokens, "check": rule.check, "task": rule.task}
    given = ", ".join(f"{name} {value}" for name, value in where.items() if value is not None)
    return f"{rule.metric}{f' ({given})' if given else ''}"
