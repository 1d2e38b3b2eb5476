"""What a plan is to reach, and which point of a curve reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hlap_export.errors import PlanError
from hlap_export.plan.curve import CurvePoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """Bounds on what a plan may cost; None for one that isn't asked for.

    Attributes:
        max_perplexity_increase: over the dense model: 0.03 for 3 %. The upper end of the interval must lie below.
        latency_ratio: most latency, relative to the dense model: prefill and decode both.
        kv_ratio: most cache per token, relative to the dense model.
        max_weight_bytes: most bytes of weights.
    """

    max_perplexity_increase: float | None = None
    latency_ratio: float | None = None
    kv_ratio: float | None = None
    max_weight_bytes: int | None = None

    def __post_init__(self) -> None:
        for name in ("latency_ratio", "kv_ratio"):
            ratio: float | None = getattr(self, name)
            if ratio is not None and not 0 < ratio < 1:
                raise PlanError(
                    where=f"--target-{name.replace('_', '-')}",
                    expected="a ratio between 0 and 1, of the dense model's",
                    found=f"{ratio:g}",
                    fix="0.85 asks for 15 % less",
                )
        if self.max_perplexity_increase is not None and self.max_perplexity_increase <= 0:
            raise PlanError(
                where="--max-perplexity-increase",
                expected="an increase above 0, such as 3%",
                found=f"{self.max_perplexity_increase:g}",
                fix="pruning without training costs something: allow a little",
            )

    @property
    def are_given(self) -> bool:
        """Whether anything is asked for."""
        return self != NO_TARGETS

    def cheap_enough(self, point: CurvePoint) -> bool:
        """Whether the point costs no more than was asked for."""
        return not self._excesses(point)

    def good_enough(self, point: CurvePoint) -> bool:
        """Whether the point's perplexity may be taken."""
        most = self.max_perplexity_increase
        return most is None or point.num_removed == 0 or point.increase_high <= most

    def are_decided(self, points: Sequence[CurvePoint]) -> bool:
        """Whether walking on can't change what `choose` says."""
        last = points[-1]
        return (self._asks_for_cost and self.cheap_enough(last)) or not self.good_enough(last)

    def choose(self, points: Sequence[CurvePoint]) -> CurvePoint:
        """The point to take: the first that is cheap enough, or else the last that is good enough.

        Args:
            points: from the dense model on, which itself is never taken.

        Raises:
            PlanError: there is none; names the nearest, on either side where two targets contradict each other.
        """
        pruned = points[1:]
        num_good = next((index for index, point in enumerate(pruned) if not self.good_enough(point)), len(pruned))
        if not self._asks_for_cost:
            if num_good == 0:
                raise self._unreachable(pruned[0])
            return pruned[num_good - 1]
        cheapest = next((point for point in pruned if self.cheap_enough(point)), pruned[-1])
        if self.cheap_enough(cheapest) and self.good_enough(cheapest):
            return cheapest
        best = [point for point in pruned[:num_good][-1:] if point.num_removed < cheapest.num_removed]
        raise self._unreachable(*best, cheapest)

    def require_more_than_dense(self, weight_bytes: int) -> None:
        """Refuse targets that the dense model meets: all others are ratios of it, which it can't.

        Args:
            weight_bytes: the dense model's.

        Raises:
            PlanError: it meets them all.
        """
        most, others = self.max_weight_bytes, (self.latency_ratio, self.kv_ratio)
        if most is not None and weight_bytes <= most and others == (None, None):
            raise PlanError(
                where="--max-weights",
                expected=f"less than the dense model's weights, {weight_bytes:,d} bytes",
                found=f"{most:,d} bytes: it is within them already",
                fix="ask for less, or leave it out and say what else is to shrink",
            )

    @property
    def _asks_for_cost(self) -> bool:
        return any(bound is not None for bound in (self.latency_ratio, self.kv_ratio, self.max_weight_bytes))

    def _excesses(self, point: CurvePoint) -> list[str]:
        """What the point takes too much of, in words."""
        bounds = (
            ("latency", self.latency_ratio, point.latency_ratio, ".3f"),
            ("KV cache", self.kv_ratio, point.kv_ratio, ".3f"),
            ("weights", self.max_weight_bytes, point.weight_bytes, ",d"),
        )
        return [
            f"{name} {format(value, form)} where {format(bound, form)} was asked for"
            for name, bound, value, form in bounds
            if bound is not None and value > bound
        ]

    def _too_bad(self, point: CurvePoint) -> list[str]:
        if self.good_enough(point):
            return []
        return [
            f"perplexity +{point.increase:.1%} (up to +{point.increase_high:.1%}) "
            f"where +{self.max_perplexity_increase:.1%} was allowed"
        ]

    def _unreachable(self, *nearest: CurvePoint) -> PlanError:
        problems = [
            f"removes {point.num_removed} and has {' and '.join((*self._excesses(point), *self._too_bad(point)))}"
            for point in nearest
        ]
        numbers = " or ".join(f"--num-layers {point.num_removed}" for point in nearest)
        return PlanError(
            where="the plan's targets",
            expected="a plan within all of them",
            found=f"none: the nearest {', the next '.join(problems)}",
            fix=f"take {'that one' if len(nearest) == 1 else 'one of them'} with {numbers}, or ask for less",
        )


NO_TARGETS = Targets()
