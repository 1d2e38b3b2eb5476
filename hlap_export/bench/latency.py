"""Time two steps against each other: warmed up and alternating.

The two alternate as ABBA (candidate, baseline, baseline, candidate, ...), so that a machine that slows down or speeds
up meanwhile does so to both alike. Before each timed step the same engine runs once untimed: the other one has taken
its place in the CPU's caches, which nobody does in a real decode loop (without it, decode of an 11 MB model measured
1.5 times as long). Steps of seconds go without: they fill the caches in no time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hlap_export.bench.statistics import Samples

Step = Callable[[], object]
Clock = Callable[[], float]

# A warm-up run that is no longer 5% faster than the best before it has nothing left to warm.
STABLE_GAIN = 0.05
MIN_WARM_UPS, MAX_WARM_UPS = 3, 20
SLOW_SECONDS = 1.0
MAX_REPEATS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """How one round of one point is timed.

    Attributes:
        repeats: pairs.
        min_repeats: pairs that are timed whatever they take.
        min_seconds: short steps are repeated for so long (up to `MAX_REPEATS` pairs), even beyond `repeats`.
        max_seconds: no new pair begins after so long, if there are `min_repeats`.
        baseline_first: whether the baseline begins the first pair.
        clock: seconds.
    """

    repeats: int
    min_seconds: float
    max_seconds: float
    min_repeats: int = 5
    baseline_first: bool = False
    clock: Clock = time.perf_counter


def warm_up(step: Step, clock: Clock) -> int:
    """Run `step` until it stops getting faster; returns how often it ran: less than `MIN_WARM_UPS` if it is slow."""
    best = float("inf")
    for count in range(1, MAX_WARM_UPS + 1):
        started = clock()
        step()
        took = clock() - started
        if count >= MIN_WARM_UPS and took > best * (1 - STABLE_GAIN):
            return count
        if took > SLOW_SECONDS:
            return count
        best = min(best, took)
    return MAX_WARM_UPS


def time_pairs(candidate: Step, baseline: Step, protocol: Protocol) -> Samples:
    """Warm both up, then time them alternately in ABBA order, each timed step after an untimed one; one round."""
    clock = protocol.clock
    steps = (candidate, baseline)
    is_slow = [warm_up(step, clock) < MIN_WARM_UPS for step in steps]
    taken: tuple[list[float], list[float]] = ([], [])
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        began = clock()
        for pair in range(MAX_REPEATS):
            if _is_enough(pair, clock() - began, protocol):
                break
            for which in (0, 1) if (pair % 2 == 0) != protocol.baseline_first else (1, 0):
                if not is_slow[which]:
                    steps[which]()
                started = clock()
                steps[which]()
                taken[which].append(clock() - started)
    finally:
        if was_collecting:
            gc.enable()
    return Samples(candidate=np.array(taken[0]), baseline=np.array(taken[1]), round_sizes=(len(taken[0]),))


def _is_enough(pairs: int, seconds: float, protocol: Protocol) -> bool:
    if pairs < protocol.repeats:
        return pairs >= protocol.min_repeats and seconds > protocol.max_seconds
    return seconds >= protocol.min_seconds
