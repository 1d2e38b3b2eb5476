"""`hlap-export compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.cli.options import Debug, Json


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders that `run` wrote.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Also write a page with pictures (HTML).")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Put runs into one table: accuracy against latency, and what nothing else beats."""
    from hlap_export.artifacts import write_text_whole
    from hlap_export.report.compare_html import html_comparison

    compared = hlap_export.compare(runs)
    if out is not None:
        write_text_whole(out, html_comparison(compared))
    terminal.show(compared, as_json=json)
