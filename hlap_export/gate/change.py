"""How much a number has changed from one run to another, as a ratio with its interval.

Two runs were measured apart, so nothing pairs their repeats, and all that is known of each is a value and an interval.
The interval of their ratio follows from both by MOVER, "method of variance estimates recovery" (Zou and Donner 2008):
on the scale of logarithms its half-widths are the square roots of the summed squares of theirs. Perplexities of the
same windows of text are compared window by window, which tells far smaller changes apart.
"""

from __future__ import annotations

import math

import numpy as np

from hlap_export.gate.results import Estimate, Windows

BOOTSTRAP_SAMPLES = 2000
LEVEL = (2.5, 97.5)


def ratio_of(candidate: Estimate, reference: Estimate) -> Estimate:
    """Candidate / reference of two independent estimates above 0."""
    ours, theirs = (tuple(math.log(value) for value in (of.low, of.value, of.high)) for of in (candidate, reference))
    change = ours[1] - theirs[1]
    return Estimate(
        value=math.exp(change),
        low=math.exp(change - math.hypot(ours[1] - ours[0], theirs[2] - theirs[1])),
        high=math.exp(change + math.hypot(ours[2] - ours[1], theirs[1] - theirs[0])),
    )


def ratio_by_windows(candidate: Windows, reference: Windows) -> Estimate:
    """Candidate's perplexity / reference's on the same windows, which are resampled with both losses."""
    differences = np.array(candidate.losses_nats_per_token) - np.array(reference.losses_nats_per_token)
    picks = np.random.default_rng(0).integers(0, differences.size, (BOOTSTRAP_SAMPLES, differences.size))
    low, high = np.percentile(differences[picks].mean(axis=1), LEVEL)
    value = float(differences.mean())
    return Estimate(value=math.exp(value), low=math.exp(min(float(low), value)), high=math.exp(max(float(high), value)))
