from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

from hlap_export.bench import latency
from hlap_export.bench.latency import MAX_REPEATS, MAX_WARM_UPS, Protocol, Samples, latency_row, time_pairs, warm_up
from hlap_export.bench.report import LatencyRow


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
    return Protocol(
        **{"repeats": 8, "min_seconds": 0.0, "max_seconds": 1e9, "seed": 0, "clock": machine.clock} | changes
    )


def row(candidate: Any, baseline: Any, *, seed: int = 0) -> LatencyRow:
    samples = Samples(candidate=np.asarray(candidate), baseline=np.asarray(baseline))
    return latency_row("decode", 64, samples, new_tokens=1, seed=seed)


def test_the_two_engines_alternate_as_abba_after_their_warm_up_each_refilling_the_caches_first() -> None:
    machine = FakeMachine()
    samples = time_pairs(machine.step("A", 0.25), machine.step("B", 0.5), protocol(machine))
    assert "".join(machine.ran) == "AAABBB" + "AABBBBAA" * 4
    np.testing.assert_array_equal(samples.candidate, np.full(8, 0.25))
    np.testing.assert_array_equal(samples.baseline, np.full(8, 0.5))


def test_warm_up_lasts_while_the_step_gets_faster_but_not_for_ever() -> None:
    machine = FakeMachine()
    assert warm_up(machine.step("A", [9.0, 5.0, 3.0, 2.0, 1.99]), machine.clock) == 5
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
    samples = time_pairs(machine.step("A", 8.0), machine.step("B", 8.0), protocol(machine, max_seconds=1.0))
    assert samples.candidate.size == 5


def test_the_garbage_collector_rests_while_pairs_are_timed_and_works_again_after() -> None:
    machine = FakeMachine()
    time_pairs(machine.step("A", 1.0), machine.step("B", 1.0), protocol(machine))
    assert machine.collector_was_on == [True] * 6 + [False] * 32
    assert gc.isenabled()


def test_a_drifting_machine_leaves_the_ratio_alone() -> None:
    """Every step takes 2% longer than the one before, whichever engine runs it: the ratio must stay 1."""
    machine = FakeMachine()
    slowing = iter(1.02**n for n in range(1000))

    def run() -> None:
        machine.now += next(slowing)

    drifted = time_pairs(run, run, protocol(machine, repeats=40))
    found = row(drifted.candidate, drifted.baseline)
    assert found.ratio == pytest.approx(1.0, abs=0.01)
    assert found.noisy


def test_a_planted_slowdown_is_the_ratio_and_lies_in_its_interval() -> None:
    random = np.random.default_rng(7)
    baseline = 0.010 * random.lognormal(sigma=0.03, size=40)
    candidate = 0.020 * random.lognormal(sigma=0.03, size=40)
    found = row(candidate, baseline)
    assert found.ratio == pytest.approx(np.median(candidate) / np.median(baseline))
    assert found.ratio_low <= 2.0 <= found.ratio_high
    assert 1.9 < found.ratio_low < found.ratio < found.ratio_high < 2.1
    assert not found.noisy
    assert found.noise is None


def test_the_interval_holds_the_true_ratio_about_95_times_in_a_hundred() -> None:
    random = np.random.default_rng(11)
    held = 0
    for _ in range(200):
        low, high = latency.ratio_interval(
            Samples(candidate=random.lognormal(0.0, 0.1, 40) * 1.5, baseline=random.lognormal(0.0, 0.1, 40)), seed=0
        )
        held += low <= 1.5 <= high
    assert 180 <= held <= 200


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    random = np.random.default_rng(3)
    candidate, baseline = random.lognormal(size=30), random.lognormal(size=30)
    first = row(candidate, baseline, seed=1)
    assert first == row(candidate, baseline, seed=1)
    assert (first.ratio_low, first.ratio_high) != (
        row(candidate, baseline, seed=2).ratio_low,
        row(candidate, baseline, seed=2).ratio_high,
    )


def test_milliseconds_and_tokens_per_second_follow_from_the_median() -> None:
    samples = Samples(candidate=np.array([0.01, 0.02, 0.04]), baseline=np.full(3, 0.04))
    found = latency_row("prefill", 64, samples, new_tokens=64, seed=0)
    assert (found.phase, found.num_tokens, found.num_repeats) == ("prefill", 64, 3)
    assert found.candidate.p50_ms == pytest.approx(20.0)
    assert found.candidate.p90_ms == pytest.approx(36.0)
    assert found.candidate.tokens_per_second == pytest.approx(3200.0)
    assert found.ratio == pytest.approx(0.5)


def test_a_wide_spread_of_the_baseline_is_called_noise() -> None:
    calm = np.full(40, 0.01)
    spread = np.where(np.arange(40) % 5 == 0, 0.02, 0.01)
    assert "p90 is 2.00 times its p50" in str(row(calm, spread).noise)
    assert row(calm, calm).noise is None


def test_a_wide_interval_is_called_noise_even_if_the_baseline_is_calm() -> None:
    candidate = np.where(np.arange(40) % 2 == 0, 0.01, 0.02)
    found = row(candidate, np.full(40, 0.01))
    assert found.noisy
    assert "interval" in str(found.noise)
    assert "p90" not in str(found.noise)
