"""Walk a method from the dense model on, measure every step, and stop where the plan is what was asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from hlap_export.artifacts import digest_of
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.plan.costs import Cost, cost_of, planned_layout
from hlap_export.plan.curve import Curve, CurvePoint
from hlap_export.plan.judging import Increase
from hlap_export.plan.methods.base import Method, Removal
from hlap_export.plan.options import Measure
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.targets import Targets
from hlap_export.plan.workbench import Workbench


@dataclass(frozen=True, kw_only=True, slots=True)
class Walk:
    """Where a method went.

    Attributes:
        removals: its steps.
        curve: the dense model, then one point for each step.
        chosen: how many of the steps to take.
    """

    removals: tuple[Removal, ...]
    curve: Curve
    chosen: int

    @property
    def plan(self) -> PruningPlan:
        """The chosen plan, not fitted yet."""
        return self.removals[self.chosen - 1].plan


def quality(increase: Increase) -> dict[str, float]:
    """What a point of a curve says of the model, as against its cost."""
    return {
        "perplexity": increase.perplexity,
        "increase": math.expm1(increase.gap_nats),
        "increase_low": math.expm1(increase.gap_nats_low),
        "increase_high": math.expm1(increase.gap_nats_high),
    }


class Meter:
    """Measures points of curves.

    Args:
        bench: for perplexities.
        dtype: that the model's weights are stored in.
        measure: latency of engines; None to count it.
    """

    def __init__(self, bench: Workbench, dtype: str, measure: Measure | None = None) -> None:
        self._bench, self._dtype, self._measure = bench, dtype, measure
        self._dense = self._cost(bench.layout)

    def point(self, num_removed: int, removed: str, plan: PruningPlan) -> CurvePoint:
        """The point of this plan."""
        increase, cost, dense = (
            self._bench.increase(plan),
            self._cost(planned_layout(self._bench.layout, plan)),
            self._dense,
        )
        return CurvePoint(
            num_removed=num_removed,
            removed=removed,
            **quality(increase),
            kv_ratio=cost.kv_values / dense.kv_values,
            weight_bytes=cost.weight_bytes,
            weight_ratio=cost.weight_bytes / dense.weight_bytes,
            prefill_ratio=cost.prefill_products / dense.prefill_products,
            decode_ratio=cost.decode_values / dense.decode_values,
            measured_ratio=self._measured(plan, num_removed),
        )

    def _measured(self, plan: PruningPlan, num_removed: int) -> float | None:
        if self._measure is None or num_removed == 0:
            return None if self._measure is None else 1.0
        measure = self._measure
        key = digest_of([measure.settings, plan.model_dump(mode="json")])
        return cast(float, self._bench.remembered(f"latency {key}", lambda: measure(plan)))

    def _cost(self, layout: ModelLayout) -> Cost:
        return cost_of(layout, self._dtype)


def walk(method: Method, name: str, meter: Meter, bench: Workbench, *, targets: Targets, num_parts: int | None) -> Walk:
    """Walk as far as it takes.

    Args:
        method: whose steps.
        name: its name, for the curve.
        meter: measures each step.
        bench: what the method works with.
        targets: where to stop.
        num_parts: how many steps to take instead, where no targets are given.

    Raises:
        PlanError: nothing that the method comes past meets the targets, or it has fewer steps.
    """
    removals, points = list[Removal](), [meter.point(0, "", bench.dense)]
    half = bench.layout.num_layers // 2
    for removal in method.walk(bench):
        removals.append(removal)
        points.append(meter.point(len(removals), removal.what, removal.plan))
        is_enough = len(removals) == num_parts if num_parts else targets.are_decided(points) and len(removals) >= half
        if is_enough:
            break
    if num_parts and len(removals) < num_parts:
        raise PlanError(
            where="num_layers",
            expected=f"at most {len(removals)} for method {name}",
            found=str(num_parts),
            fix="prune fewer",
        )
    chosen = num_parts or targets.choose(points).num_removed
    return Walk(removals=tuple(removals), curve=Curve(method=name, points=tuple(points)), chosen=chosen)
