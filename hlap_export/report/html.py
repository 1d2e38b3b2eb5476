"""`report.html`: a run in one file that opens offline, in light and dark, on paper and on a phone."""

from __future__ import annotations

from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from hlap_export.report import pictures, wording
from hlap_export.report.builds import build_table
from hlap_export.report.charts.layer_columns import layer_columns
from hlap_export.report.removals import removal_table
from hlap_export.report.sources import sources
from hlap_export.report.summary import KV_CACHE, Latency, Phase, Summary


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One of the numbers at the top: what was gained, what it cost."""

    value: str
    name: str
    detail: str


def html_report(summary: Summary) -> str:
    """The report of a run as one HTML file without scripts, links out or anything to fetch."""
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            summary=summary,
            wording=wording,
            tiles=tiles(summary),
            layers=layer_columns(summary.layers),
            search=pictures.search_figure(summary),
            removals=pictures.removal_figure(summary),
            removal_table=removal_table(summary.removals),
            latency=pictures.latency_figures(summary),
            speedup=pictures.speedup_figure(summary) if summary.latency else None,
            builds=build_table(summary.builds),
            sizes=pictures.size_figure(summary.sizes),
            sources=sources(summary.origins),
        )
    )


def environment() -> Environment:
    """The templates; all that they are given is escaped but for pictures."""
    return Environment(
        loader=PackageLoader("hlap_export.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
    )


def tiles(summary: Summary) -> list[Tile]:
    """Speed at the longest lengths, the cache, and what it costs in perplexity: gain and cost in the same size."""
    found = [_speed_tile(row) for phase in ("decode", "prefill") if (row := _longest(summary, phase)) is not None]
    for size in summary.sizes:
        if size.name == KV_CACHE:
            detail = f"{wording.of_size(size, size.dense)} → {wording.of_size(size, size.pruned)}"
            found.append(Tile(value=wording.percent(-size.removed_ratio), name=size.name, detail=detail))
    if summary.perplexities:
        row = summary.perplexities[-1]
        detail = f"{row.measured_on}, {row.dense:.2f} → {row.pruned:.2f}"
        found.append(Tile(value=wording.percent(row.increase_ratio), name="perplexity", detail=detail))
    return found


def _speed_tile(row: Latency) -> Tile:
    where = f"{row.num_tokens} tokens" if row.phase == "prefill" else f"after {row.num_tokens} tokens"
    batch = "" if row.batch == 1 else f", batch {row.batch}"
    return Tile(
        value=wording.of_speedup(row),
        name=f"{row.phase} speed, {where}{batch}",
        detail=f"{row.speedup_low:.2f} to {row.speedup_high:.2f}{', noisy' if row.noise else ''}",
    )


def _longest(summary: Summary, phase: Phase) -> Latency | None:
    """The row of the most tokens, at the smallest batch."""
    rows = [row for row in summary.latency if row.phase == phase]
    return max(rows, key=lambda row: (row.num_tokens, -row.batch), default=None)
