"""Rounds of many steps, with a clock that moves only when a step runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.ort.rounds import MIN_ROUNDS, time_rounds
from hlap_export.bench.latency import Protocol


class Clock:
    """Seconds that pass only inside steps; remembers which step ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now

    def step(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.ran.append(name)
            self.now += seconds

        return run


def protocol(clock: Clock, *, repeats: int = 4, max_seconds: float = 1e9) -> Protocol:
    return Protocol(repeats=repeats, min_seconds=0.0, max_seconds=max_seconds, clock=clock)


def test_the_order_turns_each_round_and_a_step_runs_untimed_before_it_is_timed() -> None:
    clock = Clock()
    steps = {name: clock.step(name, 0.01) for name in "abc"}
    seconds = time_rounds(steps, protocol(clock, repeats=2))
    assert "".join(clock.ran).endswith("aabbcc" + "ccbbaa")
    assert all(taken.shape == (2,) for taken in seconds.values())


def test_each_contender_gets_its_own_times() -> None:
    clock = Clock()
    seconds = time_rounds({"a": clock.step("a", 0.25), "b": clock.step("b", 0.5)}, protocol(clock))
    np.testing.assert_allclose(seconds["a"], 0.25)
    np.testing.assert_allclose(seconds["b"], 0.5)


def test_a_step_of_seconds_runs_once_to_warm_up_and_then_only_timed() -> None:
    clock = Clock()
    time_rounds({"slow": clock.step("slow", 20.0)}, protocol(clock, repeats=5))
    assert len(clock.ran) == 1 + 5


@pytest.mark.parametrize("max_seconds", [0.0, 30.0])
def test_slow_rounds_stop_early_but_not_before_the_fewest_that_make_a_median(max_seconds: float) -> None:
    clock = Clock()
    seconds = time_rounds({"slow": clock.step("slow", 20.0)}, protocol(clock, repeats=50, max_seconds=max_seconds))
    assert seconds["slow"].size == MIN_ROUNDS
