"""A walk measures each of a method's steps on windows that nothing was fitted on, and stops where it is told to."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hlap_export.errors import PlanError
from hlap_export.on_progress import Steps
from hlap_export.plan.costs import cost_of, planned_layout
from hlap_export.plan.layer_plan import Linear, Skip, linear_of
from hlap_export.plan.methods import linear_map, method_of
from hlap_export.plan.methods.attention_drop import attention_drop
from hlap_export.plan.methods.orders import by_cosine
from hlap_export.plan.methods.suffix_fit import suffix_fit
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.targets import NO_TARGETS, Targets
from hlap_export.plan.walking import Meter, Walk, walk
from hlap_export.plan.workbench import Workbench
from tests.plan.methods.benches import FITTED_ON, JUDGED_BY, naive_loss, open_bench, save_eager


def walked(bench: Workbench, *, targets: Targets = NO_TARGETS, num_parts: int | None = None, **meter: Any) -> Walk:
    measured = Meter(bench, "float32", **meter)
    return walk(attention_drop(by_cosine), "attention-drop", measured, bench, targets=targets, num_parts=num_parts)


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen2"])
def test_points_are_judged_on_windows_held_back_and_fits_use_the_others(model_type: str, tmp_path: Path) -> None:
    checkpoint, model = save_eager(tmp_path, model_type)
    bench = open_bench(checkpoint)
    method = suffix_fit(linear_of("low_rank", bench.layout, 8), "attention")
    found = walk(method, "suffix-fit", Meter(bench, "float32"), bench, targets=NO_TARGETS, num_parts=2)
    fitted = bench.fitting(found.plan).tensors
    judged = naive_loss(model, found.plan, JUDGED_BY, fitted)
    assert math.log(found.curve.points[2].perplexity) == pytest.approx(judged, rel=1e-5)
    assert bench.loss(found.plan) == pytest.approx(naive_loss(model, found.plan, FITTED_ON, fitted), rel=1e-5)
    dense = naive_loss(model, bench.dense, JUDGED_BY)
    assert math.log1p(found.curve.points[2].increase) == pytest.approx(judged - dense, abs=1e-5)


def test_each_point_carries_what_its_plan_costs(tmp_path: Path) -> None:
    bench = open_bench(save_eager(tmp_path, "llama")[0])
    found = walked(bench, num_parts=3)
    dense = cost_of(bench.layout, "float32")
    for point, removal in zip(found.curve.points[1:], found.removals, strict=True):
        cost = cost_of(planned_layout(bench.layout, removal.plan), "float32")
        assert point.removed == removal.what
        assert point.prefill_ratio == cost.prefill_products / dense.prefill_products
        assert point.decode_ratio == cost.decode_values / dense.decode_values
        assert point.kv_ratio == cost.kv_values / dense.kv_values
        assert (point.weight_bytes, point.weight_ratio) == (cost.weight_bytes, cost.weight_bytes / dense.weight_bytes)
    assert [point.kv_ratio for point in found.curve.points] == [1.0, 0.75, 0.5, 0.25]


def test_a_walk_takes_as_many_steps_as_it_is_told(tmp_path: Path) -> None:
    bench = open_bench(save_eager(tmp_path, "llama")[0])
    found = walked(bench, num_parts=1)
    assert (found.chosen, len(found.removals)) == (1, 1)
    assert sum(isinstance(attention, Skip) for attention in found.plan.attention) == 1
    with pytest.raises(PlanError, match="at most 3 for method attention-drop, found 4"):
        walked(bench, num_parts=4)


def test_targets_choose_the_point_and_the_curve_goes_on_to_half_of_the_layers(tmp_path: Path) -> None:
    bench = open_bench(save_eager(tmp_path, "llama")[0])
    found = walked(bench, targets=Targets(kv_ratio=0.8))
    assert (found.chosen, len(found.removals)) == (1, 2)
    further = walked(bench, targets=Targets(kv_ratio=0.3))
    assert (further.chosen, len(further.removals)) == (3, 3)
    with pytest.raises(PlanError, match=r"removes 3 and has KV cache 0.250 where 0.100 was asked for"):
        walked(bench, targets=Targets(kv_ratio=0.1))


def test_measured_latency_decides_where_there_is_one(tmp_path: Path) -> None:
    bench = open_bench(save_eager(tmp_path, "llama")[0])

    found = walked(bench, targets=Targets(latency_ratio=0.97), measure=Engines("onnxruntime", 0.02))
    assert found.chosen == 2
    assert [point.measured_ratio for point in found.curve.points] == pytest.approx([1, 0.98, 0.96])


def test_what_was_measured_counts_for_its_own_engine_alone(tmp_path: Path) -> None:
    bench = open_bench(save_eager(tmp_path, "llama")[0])
    first, other, again = Engines("onnxruntime", 0.02), Engines("tensorrt", 0.1), Engines("onnxruntime", 0.5)
    found = [walked(bench, num_parts=2, measure=engines).curve.points[2] for engines in (first, other, again)]
    assert [point.measured_ratio for point in found] == pytest.approx([0.96, 0.8, 0.96])
    assert [engines.calls for engines in (first, other, again)] == [2, 2, 0]


class Engines:
    """Stands for engines of plans: each attention that is gone saves the same time."""

    def __init__(self, name: str, saved: float) -> None:
        self.settings, self.calls, self._saved = {"engine": name}, 0, saved

    def __call__(self, plan: PruningPlan, /) -> float:
        self.calls += 1
        return 1 - self._saved * sum(isinstance(attention, Skip) for attention in plan.attention)


class KilledError(Exception):
    """Stands for a kill: nothing is tidied up."""


def test_a_killed_walk_measures_no_plan_twice(tmp_path: Path) -> None:
    checkpoint, _ = save_eager(tmp_path, "llama")
    undisturbed = choose(open_bench(checkpoint, work="undisturbed"))

    def kill(done: int, total: int) -> None:
        if done > 4:
            raise KilledError

    with pytest.raises(KilledError):
        choose(open_bench(checkpoint, plans=Steps(9, kill)))
    counted: list[int] = []
    resumed = choose(open_bench(checkpoint, plans=Steps(9, lambda done, total: counted.append(done))))
    assert resumed == undisturbed
    fresh: list[int] = []
    choose(open_bench(checkpoint, work="fresh", plans=Steps(9, lambda done, total: fresh.append(done))))
    # The kill came after the dense model and three plans were written down; the dense pass itself is journaled.
    assert len(counted) == len(fresh) - 3


def choose(bench: Workbench) -> Walk:
    method = method_of("choose-fit", linear_map(bench.layout, "full", None), "greedy")
    return walk(method, "choose-fit", Meter(bench, "float32"), bench, targets=NO_TARGETS, num_parts=2)


def test_a_low_rank_map_that_a_full_one_undercuts_is_full(tmp_path: Path) -> None:
    layout = open_bench(save_eager(tmp_path, "llama")[0]).layout  # D 48, K*E 32
    assert linear_map(layout, "low_rank", None) == Linear(form="full", rank=48)
    assert linear_map(layout, "low_rank", 8) == Linear(form="low_rank", rank=8)
    assert linear_map(layout, "output", None) == Linear(form="output", rank=32)
