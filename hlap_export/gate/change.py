"""How much a number has changed from one run to another, as a ratio with its interval.

Two runs were measured apart, so nothing pairs their repeats, and all that is known of each is a value and an interval.
The interval of their ratio follows from both by MOVER, "method of variance estimates recovery" (Zou and Donner 2008):
on the scale of logarithms its half-widths are the square roots of the summed squares of theirs, each being as wide as
its degrees of freedom ask for. Where 0 is in one of
the intervals there are no logarithms, and what is left of the candidate beyond the bound is looked at instead.
Perplexities of the same windows of text are compared window by window, which tells far smaller changes apart.
"""

from __future__ import annotations

import math

import numpy as np

from hlap_export.gate.results import Estimate, Windows
from hlap_export.quantiles import LEVEL, student_t
from hlap_export.verify.perplexity import mean_interval


def ratio_of(candidate: Estimate, reference: Estimate) -> Estimate:
    """Candidate / reference of two independent estimates above 0."""
    ours, theirs = (tuple(math.log(value) for value in (of.low, of.value, of.high)) for of in (candidate, reference))
    freedom = _welch(candidate, reference)

    def together(our_side: float, their_side: float) -> float:
        errors = our_side / student_t(candidate.freedom), their_side / student_t(reference.freedom)
        return student_t(freedom) * math.hypot(*errors)

    change = ours[1] - theirs[1]
    return Estimate(
        value=math.exp(change),
        low=math.exp(change - together(ours[1] - ours[0], theirs[2] - theirs[1])),
        high=math.exp(change + together(ours[2] - ours[1], theirs[1] - theirs[0])),
        freedom=freedom,
    )


def _welch(*parts: Estimate) -> int | None:
    """Degrees of freedom of a ratio of independent numbers (Welch 1947, Satterthwaite 1946)."""
    variances = [(math.log(part.high / part.low) / student_t(part.freedom)) ** 2 for part in parts]
    unsure = sum(
        variance**2 / part.freedom for variance, part in zip(variances, parts, strict=True) if part.freedom is not None
    )
    return int(sum(variances) ** 2 / unsure + 1e-9) if unsure else None


def excess_of(candidate: Estimate, reference: Estimate, bound: float) -> Estimate:
    """Candidate - bound x reference: above 0 where the ratio is above the bound, whatever is 0."""
    value = candidate.value - bound * reference.value
    below = math.hypot(candidate.value - candidate.low, bound * (reference.high - reference.value))
    above = math.hypot(candidate.high - candidate.value, bound * (reference.value - reference.low))
    return Estimate(value=value, low=value - below, high=value + above)


def widened(found: Estimate, num_numbers: int) -> Estimate:
    """Found, with an interval for one of so many: all of them hold the truth 95 times in a hundred (Bonferroni)."""
    factor = student_t(found.freedom, 1 - (1 - LEVEL) / num_numbers) / student_t(found.freedom)
    if found.low <= 0:
        low, high = (found.value + factor * (end - found.value) for end in (found.low, found.high))
    else:
        low, high = (found.value * (end / found.value) ** factor for end in (found.low, found.high))
    return found.model_copy(update={"low": low, "high": high})


def ratio_by_windows(candidate: Windows, reference: Windows) -> Estimate:
    """Candidate's perplexity / reference's on the same windows, which are resampled with both losses."""
    differences = np.array(candidate.losses_nats_per_token) - np.array(reference.losses_nats_per_token)
    low, high = mean_interval(differences)
    return Estimate(
        value=math.exp(differences.mean()),
        low=math.exp(low),
        high=math.exp(high),
        freedom=differences.size - 1 or None,
    )
