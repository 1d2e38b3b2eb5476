"""The table that `compare` prints."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hlap_export.report import comparison_wording as said
from hlap_export.report.comparison import Comparison, Entry


def render_comparison(comparison: Comparison) -> RenderableType:
    """Every engine a row, every step that all runs timed a column."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    columns = (
        "",
        "engine",
        "method",
        "layers",
        "perplexity",
        "change",
        *map(said.of_column, comparison.steps),
    )
    for column in columns:
        is_name = column in ("engine", "method")
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold")
    for entry in comparison.entries:
        table.add_row(*map(Text, _cells(comparison, entry)), style=None if entry.passed else "red")
    lines = [Text(f"! {note}", style="yellow") for note in comparison.notes]
    lines.append(Text("★ nothing else is as good in both perplexity and this time", style="dim"))
    return Group(table, Padding(Group(*lines), (0, 1, 1, 2)))


def _cells(comparison: Comparison, entry: Entry) -> list[str]:
    return [
        str(entry.number),
        said.of_entry(entry) + ("" if entry.passed else " (not verified)"),
        entry.method if entry.kind == "pruned" else "–",
        said.of_layers(entry),
        f"{entry.perplexity:.2f}",
        said.of_increase(entry),
        *(said.of_time(place, comparison) for place in said.places_of(comparison, entry)),
    ]
