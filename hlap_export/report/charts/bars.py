"""Two bars for each thing that pruning makes smaller: the dense engine's, and the pruned one's share of it."""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.report.charts.markup import element, picture, words

WIDTH, ROW = 440.0, 58.0
BAR = 11.0
RIGHT = 84.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One thing, dense and pruned, with how to write both and their difference."""

    name: str
    dense: float
    pruned: float
    dense_words: str
    pruned_words: str
    change: str


def pair_chart(pairs: tuple[Pair, ...], *, label: str) -> str:
    """Draw the pairs below each other; each has a scale of its own, from nothing to its larger value."""
    rows = (_pair(pair, ROW * index) for index, pair in enumerate(pairs))
    return picture(WIDTH, ROW * len(pairs), *rows, label=label, class_="chart")


def _pair(pair: Pair, y: float) -> str:
    most = max(pair.dense, pair.pruned) or 1.0
    parts = [words(pair.name, 0, y + 14), words(pair.change, WIDTH, y + 14, class_="number", text_anchor="end")]
    for row, (style, value, written) in enumerate(
        (("dense", pair.dense, pair.dense_words), ("pruned", pair.pruned, pair.pruned_words))
    ):
        top, length = y + 21 + row * (BAR + 3), (WIDTH - RIGHT) * value / most
        parts.append(element("rect", x=0, y=top, width=max(length, 1.0), height=BAR, rx=2, class_=f"bar {style}"))
        parts.append(words(written, length + 7, top + BAR - 1.5, class_="tick"))
    return "".join(parts)
