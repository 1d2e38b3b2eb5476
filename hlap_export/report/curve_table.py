"""The curve of a plan as a table: what each further removal costs and saves, HARP's beside it."""

from __future__ import annotations

from rich import box
from rich.table import Table

from hlap_export.plan.curve import Curve, CurvePoint

COLUMNS = ("", "gone", "perplexity", "change, 95 %", "KV", "prefill", "decode")


def curve_table(curves: tuple[Curve, ...]) -> Table:
    """One row for each point; the costs are relative to the dense model.

    Args:
        curves: the method's own, whose chosen point is marked, then others to compare with.
    """
    own, *others = curves
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), pad_edge=False)
    is_measured = any(point.measured_ratio is not None for point in own.points)
    names = (*COLUMNS, *(["measured"] if is_measured else []), *(other.method for other in others))
    for name in names:
        table.add_column(name, justify="left" if name in ("", "gone") else "right", no_wrap=True)
    for point in own.points:
        cells = [*_cells(point), *([f"{point.measured_ratio or 1:.3f}"] if is_measured else [])]
        cells += [
            _change(other.points[point.num_removed]) if point.num_removed < len(other.points) else ""
            for other in others
        ]
        is_chosen = point.num_removed == own.chosen
        table.add_row("→" if is_chosen else "", *cells, style="bold" if is_chosen else None)
    return table


def _cells(point: CurvePoint) -> list[str]:
    ratios = (point.kv_ratio, point.prefill_ratio, point.decode_ratio)
    return [
        point.removed or "nothing",
        f"{point.perplexity:.2f}",
        f"{_change(point)} ± {(point.increase_high - point.increase_low) / 2:.1%}" if point.num_removed else "",
        *(f"{ratio:.3f}" for ratio in ratios),
    ]


def _change(point: CurvePoint) -> str:
    return f"{point.increase:+.1%}" if point.num_removed else ""
