"""The page that `compare` writes: the runs in one table and two pictures."""

from __future__ import annotations

from hlap_export.report import comparison_wording as said
from hlap_export.report import wording
from hlap_export.report.charts.scatter import Mark, Side, scatter
from hlap_export.report.comparison import Comparison, Entry, Place, Step
from hlap_export.report.html import environment
from hlap_export.report.pictures import Figure


def html_comparison(comparison: Comparison) -> str:
    """Several runs as one HTML file without scripts or anything to fetch."""
    return (
        environment()
        .get_template("compare.html.jinja")
        .render(
            comparison=comparison,
            wording=wording,
            said=said,
            figures=[_figure(comparison, step) for step in comparison.steps],
            rows=[(entry, said.places_of(comparison, entry)) for entry in comparison.entries],
        )
    )


def _figure(comparison: Comparison, step: Step) -> Figure:
    where = said.of_compared(step)
    time = f"{where}, ms" if comparison.time_in == "ms" else f"{where}, time relative to dense"
    absolute = comparison.loss_in == "perplexity"
    loss = Side(title="perplexity") if absolute else Side(title="increase of perplexity", label=wording.percent_briefly)
    entries = {entry.number: entry for entry in comparison.entries}
    marks = tuple(_mark(place, entries[place.number], comparison) for place in step.places)
    return Figure(
        svg=scatter(marks, Side(title=time), loss, label=f"Perplexity against the time of {where}"),
        caption=f"{where[0].upper()}{where[1:]}: lower left is better. Filled and joined: nothing else is as good in "
        "both (the Pareto front). Grey: dense engines. Lines: 95 % intervals.",
    )


def _mark(place: Place, entry: Entry, comparison: Comparison) -> Mark:
    return Mark(
        number=place.number,
        x=place.time,
        y=place.loss,
        x_low=place.time_low,
        x_high=place.time_high,
        y_low=place.loss_low,
        y_high=place.loss_high,
        style=entry.kind,
        on_front=place.on_front,
        hint=f"{said.of_entry(entry)}: {said.of_time(place, comparison)}, perplexity {entry.perplexity:.2f}",
    )
