"""Lines over an axis: latency against tokens, perplexity against alpha."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hlap_export.report.charts.markup import element, hint, picture, words
from hlap_export.report.charts.scales import Scale, spread

WIDTH, HEIGHT = 440.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 14.0, 30.0, 42.0
CHARACTER = 7.2
"""Width of a character of a label: where labels would touch, one is left out."""
LABEL_HEIGHT = 13.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A value with its spread, and what to say of it when the pointer rests on it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    hint: str = ""
    is_marked: bool = True
    is_large: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row of points; `style` is a class of the page's style sheet, `shade` 0 to 1 its place among its likes."""

    name: str
    style: str
    points: tuple[Point, ...]
    shade: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """What an axis measures, from where to where, and which values are written beside it."""

    title: str
    low: float
    high: float
    is_log: bool = False
    ticks: tuple[float, ...] | None = None
    """None for round values."""
    label: Callable[[float], str] = "{:g}".format

    def scale(self, start: float, end: float) -> Scale:
        return Scale(low=self.low, high=self.high, start=start, end=end, is_log=self.is_log)


def line_chart(lines: tuple[Line, ...], x: Axis, y: Axis, *, label: str, named_at_end: bool = False) -> str:
    """Draw lines.

    Args:
        lines: at least one, each with at least one point.
        x: the horizontal axis.
        y: the vertical axis.
        label: what the picture shows, in a sentence.
        named_at_end: whether a line's name stands at its right end; else they stand above the picture.
    """
    right = RIGHT if not named_at_end else 14 + CHARACTER * max(len(line.name) for line in lines)
    across, up = x.scale(LEFT, WIDTH - right), y.scale(HEIGHT - BOTTOM, TOP)
    parts = [_grid(across, up, x, y), *(_line(line, across, up) for line in lines)]
    parts.append(_names_at_end(lines, across, up) if named_at_end else legend(lines))
    return picture(WIDTH, HEIGHT, *parts, label=label, class_="chart")


def shade(line: Line) -> dict[str, str]:
    """The style of a line that is one of many alike: its colour is mixed from two by its place."""
    return {} if line.shade is None else {"style": f"--shade: {100 * line.shade:.0f}%"}


def legend(lines: tuple[Line, ...], *, y: float = 16.0) -> str:
    """Names of the lines in a row above a picture; a line without a name goes with another one."""
    parts: list[str] = []
    at = LEFT
    for line in filter(lambda line: line.name, lines):
        parts.append(element("line", x1=at, x2=at + 16, y1=y - 4, y2=y - 4, class_=f"line {line.style}", **shade(line)))
        parts.append(words(line.name, at + 21, y))
        at += 38 + CHARACTER * len(line.name)
    return "".join(parts)


def _grid(across: Scale, up: Scale, x: Axis, y: Axis) -> str:
    parts: list[str] = []
    for value in y.ticks or up.ticks():
        at = up(value)
        parts.append(element("line", x1=across.start, x2=across.end, y1=at, y2=at, class_="grid"))
        parts.append(words(y.label(value), across.start - 7, at + 4, class_="tick", text_anchor="end"))
    free_from = -1.0
    for value in x.ticks or across.ticks():
        at, half = across(value), CHARACTER * len(x.label(value)) / 2
        parts.append(element("line", x1=at, x2=at, y1=up.start, y2=up.start + 4, class_="axis"))
        if at - half >= free_from:
            parts.append(words(x.label(value), at, up.start + 17, class_="tick", text_anchor="middle"))
            free_from = at + half + CHARACTER
    parts.append(element("line", x1=across.start, x2=across.end, y1=up.start, y2=up.start, class_="axis"))
    middle = (across.start + across.end) / 2
    parts.append(words(x.title, middle, HEIGHT - 6, class_="title", text_anchor="middle"))
    parts.append(
        words(
            y.title,
            0,
            0,
            class_="title",
            text_anchor="middle",
            transform=f"translate(12 {(TOP + up.start) / 2:.0f}) rotate(-90)",
        )
    )
    return "".join(parts)


def _line(line: Line, across: Scale, up: Scale) -> str:
    path = " ".join(f"{across(point.x):.1f},{up(point.y):.1f}" for point in line.points)
    parts = [element("polyline", points=path, class_=f"line {line.style}", **shade(line))]
    for point in line.points:
        at_x = across(point.x)
        if point.low is not None and point.high is not None:
            parts.append(
                element("line", x1=at_x, x2=at_x, y1=up(point.low), y2=up(point.high), class_=f"spread {line.style}")
            )
        if point.is_marked:
            dot = element(
                "circle",
                hint(point.hint),
                cx=at_x,
                cy=up(point.y),
                r=6.0 if point.is_large else 3.2,
                class_=f"dot {line.style}",
                **shade(line),
            )
            parts.append(dot)
    return "".join(parts)


def _names_at_end(lines: tuple[Line, ...], across: Scale, up: Scale) -> str:
    """Each line's name beside its last point; where there is no room for all, every second, third, ..."""
    room = int((up.start - up.end) / LABEL_HEIGHT)
    every = -(-len(lines) // room)
    named = lines[::every]
    places = spread((up(line.points[-1].y) for line in named), LABEL_HEIGHT, low=up.end, high=up.start)
    return "".join(
        words(line.name, across.end + 7, at + 4, class_=f"name {line.style}", **shade(line))
        for line, at in zip(named, places, strict=True)
    )
