"""Numbered points with their intervals in both directions, and the line through those that nothing beats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hlap_export.report.charts.markup import element, hint, picture, words
from hlap_export.report.charts.scales import Scale, padded

WIDTH, HEIGHT = 440.0, 320.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 16.0, 14.0, 44.0
RADIUS = 8.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """A numbered point; `style` is a class of the page's style sheet."""

    number: int
    x: float
    y: float
    x_low: float | None
    x_high: float | None
    y_low: float | None
    y_high: float | None
    style: str
    on_front: bool
    hint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """What an axis measures, and how to write its values."""

    title: str
    label: Callable[[float], str] = "{:g}".format


def scatter(marks: tuple[Mark, ...], x: Side, y: Side, *, label: str) -> str:
    """Draw points; nearer to the lower left corner is better in both directions."""
    x_ends = padded([value for mark in marks for value in (mark.x, mark.x_low, mark.x_high) if value is not None])
    y_ends = padded([value for mark in marks for value in (mark.y, mark.y_low, mark.y_high) if value is not None])
    across = Scale(low=x_ends[0], high=x_ends[1], start=LEFT, end=WIDTH - RIGHT)
    up = Scale(low=y_ends[0], high=y_ends[1], start=HEIGHT - BOTTOM, end=TOP)
    parts = [*_grid(across, up, x, y), _front(marks, across, up)]
    parts += [_spread(mark, across, up) for mark in marks]
    parts += [_mark(mark, across(mark.x), up(mark.y)) for mark in marks]
    return picture(WIDTH, HEIGHT, *parts, label=label, class_="chart")


def _grid(across: Scale, up: Scale, x: Side, y: Side) -> list[str]:
    parts: list[str] = []
    for value in up.ticks():
        at = up(value)
        parts.append(element("line", x1=LEFT, x2=across.end, y1=at, y2=at, class_="grid"))
        parts.append(words(y.label(value), LEFT - 7, at + 4, class_="tick", text_anchor="end"))
    for value in across.ticks():
        at = across(value)
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=up.start, class_="grid"))
        parts.append(words(x.label(value), at, up.start + 17, class_="tick", text_anchor="middle"))
    turned = f"translate(12 {(TOP + up.start) / 2:.0f}) rotate(-90)"
    parts.append(words(x.title, (LEFT + across.end) / 2, HEIGHT - 6, class_="title", text_anchor="middle"))
    parts.append(words(y.title, 0, 0, class_="title", text_anchor="middle", transform=turned))
    return parts


def _front(marks: tuple[Mark, ...], across: Scale, up: Scale) -> str:
    front = sorted((mark for mark in marks if mark.on_front), key=lambda mark: mark.x)
    path = " ".join(f"{across(mark.x):.1f},{up(mark.y):.1f}" for mark in front)
    return element("polyline", points=path, class_="line front") if len(front) > 1 else ""


def _spread(mark: Mark, across: Scale, up: Scale) -> str:
    parts: list[str] = []
    at_x, at_y, style = across(mark.x), up(mark.y), f"spread {mark.style}"
    if mark.x_low is not None and mark.x_high is not None:
        parts.append(element("line", x1=across(mark.x_low), x2=across(mark.x_high), y1=at_y, y2=at_y, class_=style))
    if mark.y_low is not None and mark.y_high is not None:
        parts.append(element("line", x1=at_x, x2=at_x, y1=up(mark.y_low), y2=up(mark.y_high), class_=style))
    return "".join(parts)


def _mark(mark: Mark, x: float, y: float) -> str:
    style = f"dot {mark.style}" if mark.on_front else f"dot {mark.style} hollow"
    number = "inside" if mark.on_front else "inside hollow"
    dot = element("circle", hint(mark.hint), cx=x, cy=y, r=RADIUS, class_=style)
    return dot + words(str(mark.number), x, y + 3.6, class_=number, text_anchor="middle")
