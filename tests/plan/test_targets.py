"""Targets choose the first point that is cheap enough or the last that is good enough, or name the nearest."""

from __future__ import annotations

import pytest

from hlap_export.errors import PlanError
from hlap_export.plan.curve import CurvePoint
from hlap_export.plan.targets import Targets


def point(num_removed: int, *, increase: float, latency: float, measured: float | None = None) -> CurvePoint:
    return CurvePoint(
        num_removed=num_removed,
        removed=f"attention {num_removed}" if num_removed else "",
        perplexity=20 * (1 + increase),
        increase=increase,
        increase_low=increase - 0.01,
        increase_high=increase + 0.01,
        kv_ratio=1 - num_removed / 10,
        weight_bytes=1000 - 50 * num_removed,
        weight_ratio=1 - num_removed / 20,
        prefill_ratio=latency,
        decode_ratio=latency - 0.02,
        measured_ratio=measured,
    )


CURVE = tuple(
    point(num_removed, increase=increase, latency=latency)
    for num_removed, (increase, latency) in enumerate([(0.0, 1.0), (0.015, 0.95), (0.022, 0.9), (0.08, 0.84)])
)


def test_the_quality_target_takes_the_last_point_whose_whole_interval_lies_within_it() -> None:
    assert Targets(max_perplexity_increase=0.03).choose(CURVE).num_removed == 1
    assert Targets(max_perplexity_increase=0.033).choose(CURVE).num_removed == 2
    assert Targets(max_perplexity_increase=0.5).choose(CURVE).num_removed == 3


def test_a_cost_target_takes_the_first_point_within_it() -> None:
    assert Targets(latency_ratio=0.9).choose(CURVE).num_removed == 2
    assert Targets(kv_ratio=0.95).choose(CURVE).num_removed == 1
    assert Targets(max_weight_bytes=850).choose(CURVE).num_removed == 3
    assert Targets(max_weight_bytes=899, kv_ratio=0.95).choose(CURVE).num_removed == 3


def test_latency_is_that_of_the_slower_phase_unless_it_was_measured() -> None:
    assert CURVE[2].latency_ratio == 0.9
    measured = point(2, increase=0, latency=0.9, measured=0.97)
    assert not Targets(latency_ratio=0.95).cheap_enough(measured)


def test_targets_that_contradict_each_other_name_the_nearest_point() -> None:
    with pytest.raises(PlanError, match=r"removes 3 and has perplexity \+8.0% .* where \+3.3% was allowed") as error:
        Targets(max_perplexity_increase=0.033, latency_ratio=0.85).choose(CURVE)
    assert "removes 2 and has latency 0.900 where 0.850 was asked for, the next" in str(error.value)
    assert "--num-layers 2 or --num-layers 3" in str(error.value)


def test_a_walk_that_perplexity_ended_before_the_cost_was_reached_names_both_excesses() -> None:
    with pytest.raises(
        PlanError, match=r"removes 1 and has KV cache 0.900 .* removes 2 and has KV cache 0.800"
    ) as error:
        Targets(max_perplexity_increase=0.026, kv_ratio=0.7).choose(CURVE[:3])
    assert "0.800 where 0.700 was asked for and perplexity +2.2% (up to +3.2%) where +2.6%" in str(error.value)


def test_a_target_that_the_dense_model_meets_is_refused_and_never_met_by_pruning_everything() -> None:
    with pytest.raises(PlanError, match=r"expected less than the dense model's weights, 1,000 bytes, found 1,000"):
        Targets(max_weight_bytes=1000).require_more_than_dense(1000)
    Targets(max_weight_bytes=999).require_more_than_dense(1000)
    Targets(max_weight_bytes=1000, kv_ratio=0.9).require_more_than_dense(1000)
    assert Targets(max_weight_bytes=1000).choose(CURVE).num_removed == 1


def test_a_cost_out_of_reach_names_what_is_left() -> None:
    with pytest.raises(PlanError, match=r"removes 3 and has latency 0.840 where 0.500 was asked for"):
        Targets(latency_ratio=0.5).choose(CURVE)
    with pytest.raises(PlanError, match=r"removes 1 and has perplexity \+1.5%"):
        Targets(max_perplexity_increase=0.001).choose(CURVE)


def test_walking_on_ends_when_nothing_more_can_change_the_choice() -> None:
    for targets in (Targets(max_perplexity_increase=0.033), Targets(latency_ratio=0.9), Targets(kv_ratio=0.7)):
        first = next(end for end in range(1, 5) if end == 4 or targets.are_decided(CURVE[:end]))
        assert targets.choose(CURVE[:first]) == targets.choose(CURVE)
        assert first == 4 or not targets.are_decided(CURVE[: first - 1])


@pytest.mark.parametrize("wrong", [{"latency_ratio": 1.2}, {"kv_ratio": 0.0}, {"max_perplexity_increase": -0.1}])
def test_a_target_that_asks_for_nothing_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(PlanError, match="Fix"):
        Targets(**wrong)  # type: ignore[arg-type]
