from __future__ import annotations

import pytest

from hlap_export.report.charts.scales import Scale, padded, spread


def test_a_scale_maps_its_ends_onto_its_places_and_equal_steps_onto_equal_lengths() -> None:
    up = Scale(low=0, high=10, start=200, end=0)
    assert [up(value) for value in (0, 5, 10)] == [200, 100, 0]
    log = Scale(low=1, high=10_000, start=0, end=40, is_log=True)
    assert [log(value) for value in (1, 10, 100, 10_000)] == pytest.approx([0, 10, 20, 40])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 88.4, (0, 20, 40, 60, 80)),
        (16.5, 22.9, (18, 20, 22)),
        (0.95, 1.36, (1.0, 1.1, 1.2, 1.3)),
        (0, 0.0031, (0, 0.001, 0.002, 0.003)),
    ],
)
def test_ticks_are_round_and_within_the_scale(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert Scale(low=low, high=high, start=0, end=1).ticks(4) == pytest.approx(ticks)


def test_ticks_of_powers_thin_out_as_the_range_grows() -> None:
    assert Scale(low=3, high=60, start=0, end=1, is_log=True).ticks() == pytest.approx((5, 10, 20, 50))
    assert Scale(low=1, high=1e8, start=0, end=1, is_log=True).ticks() == pytest.approx([10.0**n for n in range(9)])


def test_a_single_value_still_has_a_scale() -> None:
    low, high = padded([5.0])
    assert low < 5 < high
    assert Scale(low=5, high=5, start=0, end=100)(5) == 50


def test_labels_are_moved_apart_keep_their_order_and_stay_inside() -> None:
    found = spread([50, 52, 51, 99], 10, low=0, high=100)
    assert sorted(found) == [found[0], found[2], found[1], found[3]]
    assert all(second - first >= 10 - 1e-9 for first, second in zip(sorted(found), sorted(found)[1:], strict=False))
    assert min(found) >= 0
    assert max(found) <= 100
