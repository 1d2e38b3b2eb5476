"""Values with their intervals, one row each, beside the value that would mean "no difference"."""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.report.charts.markup import element, hint, picture, words
from hlap_export.report.charts.scales import Scale, padded

WIDTH, ROW = 440.0, 26.0
RIGHT, TOP, BOTTOM = 150.0, 8.0, 40.0
CHARACTER = 7.2
TICK_DISTANCE = 48.0
VALUE = 40.0
"""Width of the column of values on the right; the intervals stand beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One row: its value and how it is said, where it lies with 95 % confidence, and whether it is to be trusted."""

    name: str
    value: float
    said: str
    low: float
    high: float
    is_noisy: bool


def interval_chart(rows: tuple[Interval, ...], *, title: str, label: str, neutral: float = 1.0) -> str:
    """Draw intervals; on the right of each its numbers."""
    bounds = padded([neutral, *(row.low for row in rows), *(row.high for row in rows)])
    left = 12 + CHARACTER * max(len(row.name) for row in rows)
    height = TOP + ROW * len(rows) + BOTTOM
    floor = height - BOTTOM
    across = Scale(low=bounds[0], high=bounds[1], start=left, end=WIDTH - RIGHT)
    parts: list[str] = []
    for value in across.ticks(int((across.end - across.start) / TICK_DISTANCE)):
        at = across(value)
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=floor, class_="grid"))
        parts.append(words(f"×{value:g}", at, floor + 16, class_="tick", text_anchor="middle"))
    parts.append(element("line", x1=across(neutral), x2=across(neutral), y1=TOP, y2=floor, class_="neutral"))
    parts.extend(_row(row, across, TOP + ROW * (index + 0.5)) for index, row in enumerate(rows))
    parts.append(words(title, (across.start + across.end) / 2, height - 6, class_="title", text_anchor="middle"))
    return picture(WIDTH, height, *parts, label=label, class_="chart")


def _row(row: Interval, across: Scale, y: float) -> str:
    numbers = f"{row.low:.2f} to {row.high:.2f}{' *' if row.is_noisy else ''}"
    style = "dot pruned hollow" if row.is_noisy else "dot pruned"
    return "".join(
        (
            words(row.name, across.start - 10, y + 4, text_anchor="end"),
            element("line", x1=across(row.low), x2=across(row.high), y1=y, y2=y, class_="spread pruned"),
            element("circle", hint(f"{row.said}, {numbers}"), cx=across(row.value), cy=y, r=4.2, class_=style),
            words(row.said, across.end + 12 + VALUE, y + 4, class_="number", text_anchor="end"),
            words(numbers, across.end + 22 + VALUE, y + 4, class_="tick"),
        )
    )
