"""From a value to its place in a picture, and the round values to write beside an axis."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

ROUND_STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Values from `low` to `high` onto places from `start` to `end`; `end` may be the smaller one."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.is_log else (self.low, self.high, value)
        )
        share = 0.5 if high == low else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 5) -> tuple[float, ...]:
        """About `count` round values within the scale."""
        if self.is_log:
            return _log_ticks(self.low, self.high, count)
        step = _round_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return tuple(round(index * step, 12) for index in range(first, last + 1))


def _round_step(wanted: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten."""
    if wanted <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(wanted))
    return min((step * power for step in ROUND_STEPS), key=lambda step: abs(math.log(step / wanted)))


def _log_ticks(low: float, high: float, count: int) -> tuple[float, ...]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1,)):
        found = [step * 10.0**power for power in powers for step in steps]
        within = tuple(value for value in found if low * (1 - 1e-9) <= value <= high * (1 + 1e-9))
        if len(within) <= 2 * count:
            return within
    return within


def padded(values: Iterable[float], *, share: float = 0.06) -> tuple[float, float]:
    """The range of some values with a margin on both sides, a share of it."""
    found = tuple(values)
    low, high = min(found), max(found)
    margin = share * (high - low) or share * abs(high) or 1.0
    return low - margin, high + margin


def spread(places: Iterable[float], gap: float, *, low: float, high: float) -> list[float]:
    """Places for labels, at least `gap` apart and within the limits, as near as can be to those wanted; same order."""
    wanted = list(places)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    found = [0.0] * len(wanted)
    floor = low
    for index in order:
        found[index] = max(wanted[index], floor)
        floor = found[index] + gap
    ceiling = high
    for index in reversed(order):
        found[index] = min(found[index], ceiling)
        ceiling = found[index] - gap
    return found
