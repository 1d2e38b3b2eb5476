"""`hlap-export gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.cli.options import Debug, Json

RUN = "a run's folder, bench.json, verify.json, or results"


def gate(
    *,
    baseline: Annotated[Path, typer.Option(help=f"The accepted run: {RUN}.", show_default=False)],
    candidate: Annotated[Path, typer.Option(help=f"The run to judge: {RUN}.", show_default=False)],
    rules: Annotated[Path, typer.Option(help="YAML file with the rules.", show_default=False)],
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML there as well.")] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Make the candidate the baseline, unless another rule fails.")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Decide by rules whether a run may ship; exit code 1 if one of them fails."""
    report = hlap_export.gate(baseline, candidate, rules, accept=accept, junit=junit)
    terminal.show(report, as_json=json)
    report.require_passed()
