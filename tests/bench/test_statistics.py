from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hlap_export.bench.statistics import Interval, Samples, intervals, noise, timing
from tests.bench.timed import timed_pairs


def samples(candidate: Any, baseline: Any, *, rounds: int = 1) -> Samples:
    candidate = np.asarray(candidate, dtype=float)
    return Samples(
        candidate=candidate,
        baseline=np.asarray(baseline, dtype=float),
        round_sizes=(candidate.size // rounds,) * rounds,
    )


def width(interval: Interval) -> float:
    return interval.high - interval.low


def test_a_planted_slowdown_is_the_ratio_and_lies_in_its_interval() -> None:
    random = np.random.default_rng(7)
    found = samples(0.020 * random.lognormal(sigma=0.03, size=40), 0.010 * random.lognormal(sigma=0.03, size=40))
    interval = intervals(found, seed=0).ratio
    assert found.ratio == pytest.approx(np.median(found.candidate) / np.median(found.baseline))
    assert 1.9 < interval.low <= 2.0 <= interval.high < 2.1
    assert interval.low < found.ratio < interval.high
    assert noise(found.baseline, found.ratio, interval) is None


CALM = {"between": 0.0, "alike": 0.0}
"""Independent repeats, rounds that don't differ."""
MACHINES = [CALM, {"between": 0.01, "alike": 0.5}, {"between": 0.02, "alike": 0.3}, {"between": 0.005, "alike": 0.8}]


@pytest.mark.parametrize("machine", MACHINES)
def test_the_interval_holds_the_true_ratio_95_times_in_a_hundred_whatever_the_machine_is_like(
    machine: dict[str, float],
) -> None:
    """200 runs leave a standard error of 1.5 %. Plain resampling of pairs holds it 40 to 95 times."""
    random = np.random.default_rng(11)
    found = [intervals(timed_pairs(random, ratio=1.5, pairs=12, **machine), seed=run).ratio for run in range(200)]
    assert np.mean([interval.low <= 1.5 <= interval.high for interval in found]) == pytest.approx(0.95, abs=0.04)


def test_the_medians_have_intervals_too() -> None:
    random = np.random.default_rng(5)
    runs = [intervals(timed_pairs(random, ratio=1.5, between=0.01), seed=run) for run in range(100)]
    assert np.mean([run.baseline.low <= 0.010 <= run.baseline.high for run in runs]) >= 0.9
    assert np.mean([run.candidate.low <= 0.015 <= run.candidate.high for run in runs]) >= 0.9


def test_more_pairs_in_a_round_dont_hide_that_rounds_differ() -> None:
    random = np.random.default_rng(3)
    few, many = (
        np.mean([width(intervals(timed_pairs(random, pairs=pairs, between=0.02), seed=0).ratio) for _ in range(20)])
        for pairs in (10, 160)
    )
    assert many > few / 2


def test_the_interval_is_the_same_for_the_same_seed() -> None:
    found = timed_pairs(np.random.default_rng(3))
    assert intervals(found, seed=1) == intervals(found, seed=1)
    assert intervals(found, seed=1) != intervals(found, seed=2)


def test_rounds_of_different_sizes_are_joined_in_their_order() -> None:
    one = samples([1.0, 2.0], [3.0, 4.0])
    two = samples([5.0, 6.0, 7.0], [8.0, 9.0, 10.0])
    joined = Samples.joined([one, two])
    assert joined.candidate.tolist() == [1.0, 2.0, 5.0, 6.0, 7.0]
    assert joined.round_sizes == (2, 3)
    interval = intervals(joined, seed=0).candidate
    assert interval.low <= np.median(joined.candidate) <= interval.high


def test_one_pair_per_round_still_has_an_interval_that_holds_the_ratio() -> None:
    found = samples([1.0, 1.1, 0.9, 1.05, 0.95], [1.0] * 5, rounds=5)
    interval = intervals(found, seed=0).ratio
    assert interval.low < 1.0 < interval.high


def test_milliseconds_and_tokens_per_second_follow_from_the_median() -> None:
    found = timing(np.array([0.01, 0.02, 0.04]), Interval(low=0.01, high=0.03), 64)
    assert found.p50_ms == pytest.approx(20.0)
    assert found.p90_ms == pytest.approx(36.0)
    assert found.p99_ms == pytest.approx(39.6)
    assert (found.p50_low_ms, found.p50_high_ms) == pytest.approx((10.0, 30.0))
    assert found.tokens_per_second == pytest.approx(3200.0)


def test_a_wide_spread_of_the_baseline_is_called_noise() -> None:
    spread = np.where(np.arange(40) % 5 == 0, 0.02, 0.01)
    narrow = Interval(low=0.99, high=1.01)
    assert "p90 is 2.00 times its p50" in str(noise(spread, 1.0, narrow))
    assert noise(np.full(40, 0.01), 1.0, narrow) is None


def test_a_wide_interval_is_called_noise_even_if_the_baseline_is_calm() -> None:
    said = str(noise(np.full(40, 0.01), 1.0, Interval(low=0.9, high=1.1)))
    assert "interval is 20% wide" in said
    assert "p90" not in said
