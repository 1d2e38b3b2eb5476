"""`report.md`: the same result as on the screen, to keep, mail or paste."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined

from hlap_export.report import wording
from hlap_export.report.builds import build_table
from hlap_export.report.removals import removal_table
from hlap_export.report.sources import sources
from hlap_export.report.summary import Summary


def markdown_report(summary: Summary) -> str:
    """The report of a run as Markdown."""
    environment = Environment(
        loader=PackageLoader("hlap_export.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=_in_a_cell,
    )
    return environment.get_template("report.md.jinja").render(
        summary=summary,
        wording=wording,
        sources=sources(summary.origins),
        builds=build_table(summary.builds),
        removals=removal_table(summary.removals),
    )


def _in_a_cell(value: object) -> object:
    """Names of models and files may hold what ends a table's cell."""
    return value.replace("|", "\\|") if isinstance(value, str) else value
