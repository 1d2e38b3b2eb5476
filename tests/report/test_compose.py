from __future__ import annotations

import json

import pytest

from hlap_export.bench.report import BenchReport
from hlap_export.checkpoint.layout import layout_of
from hlap_export.plan.curve import Curve, CurvePoint
from hlap_export.plan.pruning_plan import plan_of_alphas
from hlap_export.report.compose import latency_rows, layer_rows, removal_curves
from tests.tiny import COMMON
from tests.tiny_run import FinishedRun


def test_a_speedup_is_the_ratio_turned_round_and_its_interval_too(finished: FinishedRun) -> None:
    timed = BenchReport.model_validate(json.loads((finished.out / "bench.json").read_text()))
    row = timed.latency[0].model_copy(update={"ratio": 0.8, "ratio_low": 0.5, "ratio_high": 1.25})
    (found,) = latency_rows(timed.model_copy(update={"latency": (row,)}))
    assert found.speedup == pytest.approx(1.25)
    assert (found.speedup_low, found.speedup_high) == (pytest.approx(0.8), pytest.approx(2.0))
    assert found.dense.p50_ms == row.baseline.p50_ms
    assert found.pruned.p90_ms == row.candidate.p90_ms


def test_the_plan_tells_the_alphas_that_the_checkpoint_no_longer_shows() -> None:
    dense = layout_of({"model_type": "llama"} | COMMON)
    plan = plan_of_alphas(dense, {2: 0.3, 3: 0.0}, method="fixed")
    config = {"model_type": "hlap_llama", "per_layer_config": {"2": {"attention_kind": "value_only"}}} | COMMON
    rows = layer_rows(layout_of(config), plan)
    assert [row.alpha for row in rows] == [None, None, 0.3, 0.0]
    assert [row.is_pruned for row in rows] == [False, False, True, False]


def test_the_curve_of_removals_marks_the_plan_and_puts_others_beside_it() -> None:
    dense = layout_of({"model_type": "llama"} | COMMON)
    points = tuple(point(removed, increase=0.02 * removed, latency_ratio=1 - 0.1 * removed) for removed in range(3))
    curves = (Curve(method="choose-fit", points=points, chosen=1), Curve(method="harp", points=points[:2]))
    plan = plan_of_alphas(dense, {3: 0.3}, method="choose-fit").model_copy(update={"curves": curves})
    own, other = removal_curves(plan)
    assert [(step.increase_ratio, step.latency_ratio, step.is_chosen) for step in own.points] == [
        (0, 1, False),
        (pytest.approx(0.02), pytest.approx(0.9), True),
        (pytest.approx(0.04), pytest.approx(0.8), False),
    ]
    assert (own.is_own, other.is_own) == (True, False)
    assert not any(step.is_chosen for step in other.points)


def point(num_removed: int, *, increase: float, latency_ratio: float) -> CurvePoint:
    return CurvePoint(
        num_removed=num_removed,
        removed=f"attention {num_removed}" if num_removed else "",
        perplexity=10 * (1 + increase),
        increase=increase,
        increase_low=increase,
        increase_high=increase,
        kv_ratio=1.0,
        weight_bytes=1,
        weight_ratio=1.0,
        prefill_ratio=latency_ratio,
        decode_ratio=latency_ratio - 0.05,
    )
