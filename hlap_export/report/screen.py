"""The table at the end of a run."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text as Line

from hlap_export.report import wording
from hlap_export.report.builds import build_table
from hlap_export.report.summary import Latency, Perplexity, Size, Summary


def render_summary(summary: Summary) -> RenderableType:
    """Everything a person wants to know of a run, for a console of 80 columns or more."""
    return Group(_heading(summary), _table(summary), _footer(summary))


def _heading(summary: Summary) -> RenderableType:
    title = Line(wording.headline(summary), style="bold")
    subject = Line(f"{summary.model} ({summary.family}), method {summary.method}", style="dim")
    strip = Line.assemble(
        (wording.layer_strip(summary.layers), "cyan"), "   ", (wording.layer_legend(summary.layers), "dim")
    )
    changes = Line("   ".join(wording.layer_changes(summary.layers)))
    return Padding(Group(title, subject, Line(), strip, changes), (1, 1, 0, 1))


def _table(summary: Summary) -> Table:
    table = _new_table("", "dense", "pruned", "change", "")
    for size in summary.sizes:
        _add_size(table, size)
    for perplexity in summary.perplexities:
        table.add_section()
        _add_perplexity(table, perplexity)
    if summary.builds:
        table.add_section()
        for name, cells in build_table(summary.builds):
            table.add_row(name, *cells)
    table.add_section()
    for row in summary.latency:
        _add_latency(table, row)
    return table


def render_latency(rows: tuple[Latency, ...], sizes: tuple[Size, ...]) -> RenderableType:
    """What `bench` measured: medians and their ratio, then each engine's slower steps, its rate and its limit."""
    table = _new_table("", "dense", "this engine", "change", "")
    for size in sizes:
        _add_size(table, size)
    table.add_section()
    for row in rows:
        _add_latency(table, row)
    notes = Line(f"{wording.STEPS}\n{wording.LEAST}", style="dim")
    return Group(table, _rates(rows), Padding(notes, (0, 1, 1, 2)))


def _rates(rows: tuple[Latency, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    for column in ("", "", "p90", "p99", "tokens/s", "at least"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        for step, name, timing in ((wording.of_row(row), "dense", row.dense), ("", "this engine", row.pruned)):
            times = (wording.in_ms(timing.p90_ms), wording.in_ms(timing.p99_ms))
            table.add_row(step, name, *times, wording.in_rate(timing.tokens_per_second), wording.in_ms(timing.limit_ms))
    return table


def _new_table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if 0 < index < 4 else "left", no_wrap=True)
    return table


def _add_size(table: Table, size: Size) -> None:
    table.add_row(
        size.name,
        wording.of_size(size, size.dense),
        wording.of_size(size, size.pruned),
        wording.percent(-size.removed_ratio),
    )


def _add_latency(table: Table, row: Latency) -> None:
    table.add_row(
        wording.of_row(row),
        wording.in_ms(row.dense.p50_ms),
        wording.in_ms(row.pruned.p50_ms),
        wording.of_speedup(row),
        Line(f"{row.speedup_low:.2f} to {row.speedup_high:.2f}{' *' if row.noise else ''}", style="dim"),
    )


def _add_perplexity(table: Table, perplexity: Perplexity) -> None:
    def change(value: float) -> str:
        return wording.percent(value / perplexity.dense - 1)

    table.add_row(
        f"perplexity ({perplexity.measured_on})",
        f"{perplexity.dense:.2f}",
        Line(f"{perplexity.pruned:.2f}", style="bold"),
        change(perplexity.pruned),
        Line(wording.of_increase(perplexity), style="dim"),
    )
    for name, value in (
        ("  every alpha 1", perplexity.all_ones),
        ("  attention dropped", perplexity.all_dropped),
    ):
        if value is not None:
            table.add_row(name, "", f"{value:.2f}", change(value), style="dim")


def _footer(summary: Summary) -> RenderableType:
    lines = [
        Line(
            f"{'✓' if summary.passed else '✗'} {wording.verdict(summary)}",
            style="green" if summary.passed else "bold red",
        )
    ]
    if summary.measured_instead:
        lines.append(Line(summary.measured_instead, style="yellow"))
    for perplexity in summary.perplexities:
        lines.append(Line(f"perplexity, {perplexity.measured_on}: {wording.of_text(perplexity.text)}", style="dim"))
    for doubt in wording.doubts(has_stars=summary.has_stars, disturbed=summary.disturbed):
        lines.append(Line(doubt, style="yellow"))
    machine = summary.machine
    lines.append(
        Line(
            f"{summary.engine}, {summary.dtype}, {machine.get('cpu')}, {wording.in_threads(summary.threads)}",
            style="dim",
        )
    )
    return Padding(Group(*lines), (0, 1, 1, 1))
