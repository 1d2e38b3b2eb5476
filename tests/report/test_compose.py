from __future__ import annotations

import json

import pytest

from hlap_export.bench.report import BenchReport
from hlap_export.checkpoint.layout import layout_of
from hlap_export.plan.pruning_plan import plan_of_alphas
from hlap_export.report.compose import latency_rows, layer_rows
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
