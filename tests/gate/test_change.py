from __future__ import annotations

import math

import numpy as np
import pytest

from hlap_export.gate.change import ratio_by_windows, ratio_of
from hlap_export.gate.results import Estimate, Windows


def estimate(value: float, width: float) -> Estimate:
    return Estimate(value=value, low=value * math.exp(-width), high=value * math.exp(width))


def test_two_intervals_of_the_same_width_make_one_that_is_wider_by_the_square_root_of_two() -> None:
    found = ratio_of(estimate(3.0, 0.02), estimate(2.0, 0.02))
    assert found.value == pytest.approx(1.5)
    assert math.log(found.high / found.value) == pytest.approx(0.02 * math.sqrt(2))
    assert math.log(found.value / found.low) == pytest.approx(0.02 * math.sqrt(2))


def test_each_side_of_the_interval_takes_the_sides_that_lead_there() -> None:
    """A candidate that may be far slower and a reference that may be far faster both make the ratio larger."""
    exact = Estimate.exactly(1.0)
    skewed = Estimate(value=1.0, low=1.0, high=1.5)
    assert ratio_of(skewed, exact).low == 1.0
    assert ratio_of(skewed, exact).high == pytest.approx(1.5)
    assert ratio_of(exact, skewed).low == pytest.approx(1 / 1.5)
    assert ratio_of(exact, skewed).high == 1.0


def test_the_interval_holds_the_true_change_95_times_in_a_hundred() -> None:
    random = np.random.default_rng(5)
    errors = random.normal(0.0, 0.01, (2000, 2))
    held = [
        (found := ratio_of(estimate(math.exp(ours), 0.0196), estimate(math.exp(theirs), 0.0196))).low <= 1 <= found.high
        for ours, theirs in errors
    ]
    assert 0.94 <= np.mean(held) <= 0.96


def mean_of(samples: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Estimate:
    """The mean of a few samples with the interval of Student's t, from tables, on the scale of logarithms."""
    table = {4: 2.776, 9: 2.262}
    half = table[samples.size - 1] * samples.std(ddof=1) / math.sqrt(samples.size)
    return estimate(math.exp(samples.mean()), half).model_copy(update={"freedom": samples.size - 1})


@pytest.mark.parametrize(("size", "spread"), [(5, 0.01), (10, 0.01), (10, 0.05)])
def test_intervals_of_a_few_rounds_make_one_that_is_no_wider_than_it_must_be(size: int, spread: float) -> None:
    """Without the degrees of freedom, two of four each would hold it 97 times."""
    random = np.random.default_rng(6)
    found = [
        ratio_of(mean_of(random.normal(0.0, spread, size)), mean_of(random.normal(0.0, 0.01, 5))) for _ in range(2000)
    ]
    assert 0.94 <= np.mean([one.low <= 1 <= one.high for one in found]) <= 0.963


def windows(losses: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Windows:
    return Windows(text="t", losses_nats_per_token=tuple(losses))


def test_pairs_of_windows_show_a_change_that_their_spread_would_hide() -> None:
    random = np.random.default_rng(1)
    losses = random.normal(2.8, 0.4, 32)
    found = ratio_by_windows(windows(losses + random.normal(0.02, 0.005, 32)), windows(losses))
    assert found.value == pytest.approx(math.exp(0.02), abs=0.003)
    assert 1.01 < found.low < found.value < found.high < 1.03


def test_the_same_losses_have_not_changed_at_all() -> None:
    losses = np.random.default_rng(1).normal(2.8, 0.4, 32)
    found = ratio_by_windows(windows(losses), windows(losses))
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)
