"""Hold metrics against rules: the whole interval must lie beyond a bound to fail, and within it to pass.

A rule such as `*_ms` holds many numbers against one bound, and each has its own 2.5% to be beyond it by chance. So
that an engine that hasn't changed fails a whole rule no more often than it would fail for one number, something must
have changed even with wider intervals: the farthest of m numbers with an interval for one of m, or the k farthest with
one for one of m - k + 1 (Hochberg 1988, "A sharper Bonferroni procedure for multiple tests of significance"). To pass,
all must be within, each with its own interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hlap_export.gate.change import excess_of, ratio_by_windows, ratio_of, widened
from hlap_export.gate.report import Outcome, Verdict
from hlap_export.gate.results import TIMES, Estimate, Metric, Results
from hlap_export.gate.rules import Rule, Rules

# What must agree for these of two runs to be comparable, beside the number of threads.
MACHINE_FACTS = {"prefill_ms": ("cpu", "cores"), "decode_ms": ("cpu", "cores"), "peak_memory_bytes": ("cores",)}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Judged:
    """What a rule is about on one metric, or why there is nothing to judge."""

    found: Estimate | None
    reference: float | None
    untold: str | None = None
    """Why it can't be told; the found change is shown nevertheless."""
    excess: Estimate | None = None
    """What of the candidate is beyond the bound, where something is 0 and there is no ratio to find."""
    otherwise: Outcome = "skipped"
    """The outcome where nothing was found."""

    @property
    def is_random(self) -> bool:
        """Whether it may come out differently the next time, and be beyond its bound by chance."""
        held = self.found or self.excess
        return self.untold is None and held is not None and held.low < held.high

    def among(self, num_numbers: int) -> _Judged:
        """The same as one of so many that chance may fail."""
        found, excess = (held and widened(held, num_numbers) for held in (self.found, self.excess))
        return replace(self, found=found, excess=excess)


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
        judged = [_judged(rule, metric, candidate, accepted) for metric in metrics]
        by_chance = _by_chance(rule, judged)
        for index, (metric, one) in enumerate(zip(metrics, judged, strict=True)):
            said = by_chance.get(index)
            yield _settled(_verdict(rule, metric, replace(one, untold=said) if said else one), fails_unclear)
        gone = [
            metric
            for metric in (accepted.metrics if accepted and rule.against == "accepted" else ())
            if rule.applies_to(metric) and metric.key not in candidate.by_key
        ]
        for metric in gone:
            yield _unmeasured(rule, metric.label, metric.name, "the accepted run has it, the candidate hasn't")
        if not metrics and not gone:
            yield _unmeasured(rule, _asked_for(rule), rule.metric, "the candidate has no such number")


def _by_chance(rule: Rule, judged: Sequence[_Judged]) -> dict[int, str]:
    """Which of those that are beyond the bound may be so because the rule holds many, and that in words."""
    random = [index for index, one in enumerate(judged) if one.is_random]
    endured = {index: _endured(rule, judged[index], len(random)) for index in random}
    beyond = sorted((index for index in random if endured[index]), key=lambda index: -endured[index])
    num_sure = max((k for k, index in enumerate(beyond, start=1) if endured[index] > len(random) - k), default=0)
    said = f"beyond the bound, but one of {len(random)} numbers is so far off by chance: more repeats would tell"
    return dict.fromkeys(beyond[num_sure:], said)


def _endured(rule: Rule, judged: _Judged, most: int) -> int:
    """Among how many numbers, `most` at the most, it would still fail; 0 if it doesn't fail alone."""
    if _within(rule, judged, rule.bound) != "failed":
        return 0
    harmless = rule.bound
    if rule.against is not None:  # what may come by chance to an engine that hasn't changed
        harmless = min(rule.bound, 1.0) if rule.at_least is None else max(rule.bound, 1.0)
    fails = (count for count in range(most, 0, -1) if _within(rule, judged.among(count), harmless) == "failed")
    return next(fails, 0)


def _verdict(rule: Rule, metric: Metric, judged: _Judged) -> Verdict:
    outcome, reason = judged.otherwise, judged.untold
    if judged.found is not None or judged.excess is not None:
        outcome = "unclear" if judged.untold else _within(rule, judged, rule.bound)
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


def _judged(rule: Rule, metric: Metric, candidate: Results, accepted: Results | None) -> _Judged:
    match rule.against:
        case None:
            untold = _too_short(metric) or _disturbance(metric, candidate)
            return _Judged(found=metric.estimate, reference=None, untold=untold)
        case "dense":
            return _against_dense(rule, metric)
        case "accepted":
            return _against_accepted(rule, metric, candidate, accepted)


def _against_dense(rule: Rule, metric: Metric) -> _Judged:
    if metric.to_dense is not None:
        reference = metric.estimate.value / metric.to_dense.value
        return _Judged(found=metric.to_dense, reference=reference, untold=_too_short(metric))
    if metric.dense is not None:
        return _relative(rule, metric.estimate, metric.dense)
    return _Judged(found=None, reference=None, untold="no dense engine was measured beside it", otherwise="failed")


def _against_accepted(rule: Rule, metric: Metric, candidate: Results, accepted: Results | None) -> _Judged:
    if accepted is None:
        return _Judged(found=None, reference=None, untold="nothing has been accepted yet")
    known = accepted.by_key.get(metric.key)
    if known is None:
        return _Judged(found=None, reference=None, untold="the accepted run hasn't measured it")
    ours, theirs = metric.windows, known.windows
    if ours is not None and theirs is not None and ours.text == theirs.text:
        found = ratio_by_windows(ours, theirs)
        judged = _Judged(found=found, reference=known.estimate.value)
    else:
        judged = _relative(rule, metric.estimate, known.estimate)
    untold = (
        _difference(metric, candidate, accepted)
        or _other_text(metric, known)
        or _too_short(metric)
        or _disturbance(metric, candidate, accepted)
    )
    return replace(judged, untold=untold)


def _relative(rule: Rule, ours: Estimate, theirs: Estimate) -> _Judged:
    if min(ours.low, theirs.low) > 0:
        return _Judged(found=ratio_of(ours, theirs), reference=theirs.value)
    excess = excess_of(ours, theirs, rule.bound)
    return _Judged(found=None, reference=theirs.value, excess=excess)


def _other_text(metric: Metric, known: Metric) -> str | None:
    """Why perplexities of two runs say nothing of the engines."""
    if (metric.windows and metric.windows.text) == (known.windows and known.windows.text):
        return None
    return "the accepted run scored another text, or other windows of it"


def _too_short(metric: Metric) -> str | None:
    if metric.windows is None or len(metric.windows.losses_nats_per_token) > 1:
        return None
    return "a single window of text doesn't tell how much windows differ"


def _difference(metric: Metric, candidate: Results, accepted: Results) -> str | None:
    """Why times and memory of the two runs say nothing of the engines."""
    if metric.name not in MACHINE_FACTS:
        return None
    names = MACHINE_FACTS[metric.name]
    facts = [(name, candidate.machine.get(name), accepted.machine.get(name)) for name in names]
    for name, ours, theirs in (*facts, ("threads", candidate.threads, accepted.threads)):
        if ours != theirs:
            said = f"the accepted run is of another machine ({name}: {theirs}, here {ours})"
            return f"{said}; {metric.name.replace('_ms', '_ratio')} can be compared" if metric.name in TIMES else said
    return None


def _disturbance(metric: Metric, *runs: Results) -> str | None:
    """Times alone suffer from what else runs; ratios were measured in turn."""
    said = [reason for run in runs for reason in run.disturbed]
    return said[0] if metric.name in TIMES and said else None


def _within(rule: Rule, judged: _Judged, bound: float) -> Outcome:
    held, bound = (judged.found, bound) if judged.found is not None else (judged.excess, 0.0)
    assert held is not None, "asked where something was found"
    low, high = held.low, held.high
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
