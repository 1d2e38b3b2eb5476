"""The curve of a plan in words, for the reports: what each further removal costs and saves, other methods beside it."""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.report import wording
from hlap_export.report.summary import Removal, RemovalCurve


@dataclass(frozen=True, kw_only=True, slots=True)
class RemovalRow:
    """One point of the plan's own curve: a cell for each of the names, the first of them in words."""

    cells: tuple[str, ...]
    is_chosen: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class RemovalTable:
    """All points; costs and savings are relative to the dense model."""

    names: tuple[str, ...]
    rows: tuple[RemovalRow, ...]


def removal_table(curves: tuple[RemovalCurve, ...]) -> RemovalTable | None:
    """The table; None where the plan's method went no such way."""
    if not curves:
        return None
    own, *others = curves
    rows = [
        RemovalRow(cells=(*_cells(point), *(_change_at(other, index) for other in others)), is_chosen=point.is_chosen)
        for index, point in enumerate(own.points)
    ]
    names = ("gone", "perplexity", "95 %", "KV cache", "weights", "latency")
    return RemovalTable(names=(*names, *(f"perplexity, {other.method}" for other in others)), rows=tuple(rows))


def _cells(point: Removal) -> tuple[str, ...]:
    saved = (point.kv_ratio, point.weight_ratio, point.latency_ratio)
    interval = f"{wording.percent(point.increase_ratio_low)} to {wording.percent(point.increase_ratio_high)}"
    return (
        point.removed or "nothing",
        wording.percent(point.increase_ratio) if point.removed else "",
        interval if point.removed else "",
        *(wording.percent(ratio - 1) if point.removed else "" for ratio in saved),
    )


def _change_at(curve: RemovalCurve, index: int) -> str:
    is_there = 0 < index < len(curve.points)
    return wording.percent(curve.points[index].increase_ratio) if is_there else ""
