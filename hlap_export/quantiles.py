"""Where the ends of intervals lie: quantiles of the normal distribution and of Student's t."""

from __future__ import annotations

import math
from functools import cache
from statistics import NormalDist

LEVEL = 0.975
"""Upper end of a 95% interval."""
HALVINGS = 60


def normal(level: float = LEVEL) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(level)


@cache
def student_t(freedom: int | None, level: float = LEVEL) -> float:
    """Quantile of Student's t with so many degrees of freedom, None for endlessly many; `level` is above one half."""
    if freedom is None:
        return normal(level)
    low, high = 0.0, math.pi / 2
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 2 * level - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """Probability that |t| <= sqrt(freedom) tan(angle): a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    is_odd = freedom % 2
    term, total = math.cos(angle) if is_odd else 1.0, 0.0
    for index in range(1, freedom // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * index - 1 + is_odd) / (2 * index + is_odd)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if is_odd else total
