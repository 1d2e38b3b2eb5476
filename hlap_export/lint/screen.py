"""Findings in a terminal: one paragraph for each rule, however many layers broke it."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hlap_export.lint.report import Finding, LintReport

STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def render_lint(report: LintReport) -> RenderableType:
    """The report as something that rich prints."""
    counts = {kind: sum(finding.severity == kind for finding in report.findings) for kind in STYLES}
    said = [f"{count} {kind}{'s' if count > 1 else ''}" for kind, count in counts.items() if count]
    heading = Text.assemble(
        (report.target, "bold"), f": {', '.join(said) or 'nothing to complain about'} in {report.num_nodes} nodes\n"
    )
    heading.append(report.graph, "dim")
    rows = Table.grid(padding=(0, 2))
    rows.add_column(no_wrap=True)
    rows.add_column(overflow="fold")
    for findings in _by_rule(report):
        rows.add_row(Text(findings[0].severity, STYLES[findings[0].severity]), _paragraph(findings))
        rows.add_row()
    sources = Text(f"operators: {report.matrix}", "dim")
    return Padding(Group(heading, Text(), rows, sources), (1, 1, 1, 1))


def _by_rule(report: LintReport) -> list[list[Finding]]:
    def order(finding: Finding) -> Any:
        return list(STYLES).index(finding.severity), finding.rule

    return [list(same) for _, same in groupby(sorted(report.findings, key=order), key=order)]


def _paragraph(findings: list[Finding]) -> Text:
    first = findings[0]
    text = Text.assemble((first.rule, "bold"), f"  {_where(findings)}\n", f"{first.where}: {first.found}\n")
    text.append(f"expected {first.expected}\n")
    text.append(f"fix: {first.fix}\n")
    return text.append(f"source: {first.source}", "dim")


def _where(findings: list[Finding]) -> str:
    """How often, and in which layers: "28 times, layers 0 to 8, 11"."""
    layers = sorted({finding.layer for finding in findings if finding.layer is not None})
    times = "once" if len(findings) == 1 else f"{len(findings)} times"
    return f"{times}, layer{'s' if len(layers) > 1 else ''} {_spans(layers)}" if layers else times


def _spans(numbers: list[int]) -> str:
    """Ascending numbers with runs drawn together: [0, 1, 2, 5] becomes "0 to 2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
