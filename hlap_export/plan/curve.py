"""What each further removal costs and saves: the curve that a planner walks, as it is stored in the plan."""

from __future__ import annotations

from hlap_export.plan.layer_plan import Strict


class CurvePoint(Strict):
    """The model with so many parts removed, relative to the dense one, which is point 0.

    Attributes:
        num_removed: parts removed so far.
        removed: what goes beyond the point before, such as "attention 9"; empty for the dense model.
        perplexity: on the calibration windows.
        increase: of the perplexity over the dense model's: 0.03 for 3 %. `increase_low` and `increase_high` are its
            95 % interval over the windows.
        kv_ratio: cache per token.
        weight_bytes: all weights, as wide as the checkpoint stores them.
        weight_ratio: likewise, relative to the dense model.
        prefill_ratio: multiplications of a prefill that asks for the last token's logits, counted.
        decode_ratio: bytes that a decode step reads, counted.
        measured_ratio: latency of an engine, measured, the interval's upper end; None where it wasn't.
    """

    num_removed: int
    removed: str
    perplexity: float
    increase: float
    increase_low: float
    increase_high: float
    kv_ratio: float
    weight_bytes: int
    weight_ratio: float
    prefill_ratio: float
    decode_ratio: float
    measured_ratio: float | None = None

    @property
    def latency_ratio(self) -> float:
        """The measured latency; where there is none, the larger of the counted ones: both phases are at most that."""
        return max(self.prefill_ratio, self.decode_ratio) if self.measured_ratio is None else self.measured_ratio


class Curve(Strict):
    """All points that a method came past, from the dense model on.

    Attributes:
        chosen: parts removed at the point that the plan is; None for a curve to compare with.
    """

    method: str
    points: tuple[CurvePoint, ...]
    chosen: int | None = None
