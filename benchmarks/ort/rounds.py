"""Time any number of steps against each other: warmed up, one after another in rounds, the order turned each time.

It is `hlap_export.bench.latency` for more than two: before a timed step the same contender runs once untimed, because
the others have taken its place in the CPU's caches. Steps of seconds go without: they fill the caches in no time.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping

import numpy as np

from hlap_export.bench.latency import MIN_WARM_UPS, Clock, Protocol, Step, warm_up
from hlap_export.bench.statistics import Seconds

MIN_ROUNDS, MAX_ROUNDS = 2, 500


def time_rounds(steps: Mapping[str, Step], protocol: Protocol) -> dict[str, Seconds]:
    """Durations of each step in seconds; index i of all of them is the same round.

    Args:
        steps: contender -> step.
        protocol: `repeats` rounds; more, up to `MAX_ROUNDS`, until `min_seconds` have passed; fewer, but at least
            `MIN_ROUNDS`, when `max_seconds` have.
    """
    clock = protocol.clock
    is_slow = {name: _warmed_up_slowly(step, clock) for name, step in steps.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        began = clock()
        for number in range(MAX_ROUNDS):
            if _is_enough(number, clock() - began, protocol):
                break
            for name in list(steps) if number % 2 == 0 else reversed(list(steps)):
                if not is_slow[name]:
                    steps[name]()
                started = clock()
                steps[name]()
                taken[name].append(clock() - started)
    finally:
        if was_collecting:
            gc.enable()
    return {name: np.array(seconds) for name, seconds in taken.items()}


def _warmed_up_slowly(step: Step, clock: Clock) -> bool:
    """Run `step` until it is warm; whether one run takes so long that once is enough."""
    return warm_up(step, clock) < MIN_WARM_UPS


def _is_enough(rounds: int, seconds: float, protocol: Protocol) -> bool:
    if rounds < protocol.repeats:
        return rounds >= MIN_ROUNDS and seconds > protocol.max_seconds
    return seconds >= protocol.min_seconds
