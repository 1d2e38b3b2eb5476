from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from hlap_export.bench.latency import MAX_REPEATS, MAX_WARM_UPS, Protocol, time_pairs, warm_up
from hlap_export.bench.statistics import intervals, noise


class FakeMachine:
    """A clock that moves only when a step runs; each step is written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []
        self.collector_was_on: list[bool] = []

    def clock(self) -> float:
        return self.now

    def step(self, name: str, seconds: Any) -> Any:
        durations = iter(seconds) if not isinstance(seconds, float) else None

        def run() -> None:
            self.ran.append(name)
            self.collector_was_on.append(gc.isenabled())
            self.now += seconds if durations is None else float(next(durations))

        return run


def protocol(machine: FakeMachine, **changes: Any) -> Protocol:
    return Protocol(**{"repeats": 8, "min_seconds": 0.0, "max_seconds": 1e9, "clock": machine.clock} | changes)


def test_the_two_engines_alternate_as_abba_after_their_warm_up_each_refilling_the_caches_first() -> None:
    machine = FakeMachine()
    samples = time_pairs(machine.step("A", 0.25), machine.step("B", 0.5), protocol(machine))
    assert "".join(machine.ran) == "AAABBB" + "AABBBBAA" * 4
    np.testing.assert_array_equal(samples.candidate, np.full(8, 0.25))
    np.testing.assert_array_equal(samples.baseline, np.full(8, 0.5))


def test_warm_up_lasts_while_the_step_gets_faster_but_not_for_ever() -> None:
    machine = FakeMachine()
    assert warm_up(machine.step("A", [0.9, 0.5, 0.3, 0.2, 0.199]), machine.clock) == 5
    assert warm_up(machine.step("A", [2.0**-n for n in range(100)]), machine.clock) == MAX_WARM_UPS


def test_the_first_step_after_the_other_engine_is_not_counted() -> None:
    machine = FakeMachine()
    cold_then_warm = [1.0] * 3 + [5.0, 1.0] * 8
    samples = time_pairs(machine.step("A", cold_then_warm), machine.step("B", 1.0), protocol(machine))
    np.testing.assert_array_equal(samples.candidate, np.ones(8))


def test_short_steps_are_repeated_until_there_is_enough_time_in_them() -> None:
    machine = FakeMachine()
    samples = time_pairs(machine.step("A", 0.25), machine.step("B", 0.25), protocol(machine, min_seconds=20.0))
    assert samples.candidate.size == samples.baseline.size == 20
    samples = time_pairs(machine.step("A", 2.0**-20), machine.step("B", 2.0**-20), protocol(machine, min_seconds=20.0))
    assert samples.candidate.size == MAX_REPEATS


def test_long_steps_stop_early_but_never_below_five_pairs() -> None:
    machine = FakeMachine()
    samples = time_pairs(machine.step("A", 0.5), machine.step("B", 0.5), protocol(machine, max_seconds=1.0))
    assert samples.candidate.size == 5


def test_a_round_has_its_own_least_number_of_pairs() -> None:
    machine = FakeMachine()
    once = protocol(machine, max_seconds=1.0, min_repeats=1)
    assert time_pairs(machine.step("A", 0.5), machine.step("B", 0.5), once).candidate.size == 1


def test_steps_of_seconds_run_once_to_warm_up_and_then_only_timed() -> None:
    machine = FakeMachine()
    time_pairs(machine.step("A", 8.0), machine.step("B", 8.0), protocol(machine, repeats=2))
    assert "".join(machine.ran) == "AB" + "ABBA"


def test_every_second_round_begins_with_the_baseline() -> None:
    machine = FakeMachine()
    time_pairs(machine.step("A", 8.0), machine.step("B", 8.0), protocol(machine, repeats=2, baseline_first=True))
    assert "".join(machine.ran) == "AB" + "BAAB"


def test_the_garbage_collector_rests_while_pairs_are_timed_and_works_again_after() -> None:
    machine = FakeMachine()
    time_pairs(machine.step("A", 1.0), machine.step("B", 1.0), protocol(machine))
    assert machine.collector_was_on == [True] * 6 + [False] * 32
    assert gc.isenabled()


def test_a_drifting_machine_leaves_the_ratio_alone() -> None:
    """Every step takes 2% longer than the one before, whichever engine runs it: the ratio must stay 1."""
    machine = FakeMachine()
    slowing = iter(1e-3 * 1.02**n for n in range(1000))

    def run() -> None:
        machine.now += next(slowing)

    drifted = time_pairs(run, run, protocol(machine, repeats=40))
    assert drifted.ratio == pytest.approx(1.0, abs=0.01)
    assert noise(drifted.baseline, drifted.ratio, intervals(drifted, seed=0).ratio)
