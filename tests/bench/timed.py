"""Pairs as a machine gives them whose rounds and neighbouring repeats are alike, the truth being known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hlap_export.bench.statistics import Samples


def timed_pairs(
    random: np.random.Generator,
    *,
    ratio: float = 1.0,
    rounds: int = 5,
    pairs: int = 20,
    between: float = 0.01,
    within: float = 0.03,
    alike: float = 0.5,
    baseline_seconds: float = 0.01,
) -> Samples:
    """Durations of both engines.

    Args:
        random: where chance comes from.
        ratio: the true one, candidate / baseline.
        rounds: how many.
        pairs: in each of them.
        between: standard deviation, relative, of an engine's level from round to round.
        within: of single repeats.
        alike: correlation of a repeat with the one before it.
        baseline_seconds: the baseline's true median.
    """

    def engine(seconds: float) -> NDArray[np.float64]:
        return np.concatenate([_round(seconds * np.exp(random.normal(0.0, between))) for _ in range(rounds)])

    def _round(seconds: float) -> NDArray[np.float64]:
        steps = random.normal(size=pairs)
        for index in range(1, pairs):
            steps[index] = alike * steps[index - 1] + np.sqrt(1 - alike**2) * steps[index]
        return seconds * np.exp(within * steps)

    return Samples(
        candidate=engine(ratio * baseline_seconds),
        baseline=engine(baseline_seconds),
        round_sizes=(pairs,) * rounds,
    )
