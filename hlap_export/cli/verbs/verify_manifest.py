"""`hlap-export verify-manifest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.cli.options import Debug, Json


def verify_manifest(
    folder: Annotated[Path, typer.Argument(help="A checkpoint, export, engine, bundle or run.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that not a byte was changed since a folder was written; exit code 1 if one was."""
    with terminal.progress().stage("verify-manifest"):
        report = hlap_export.verify_manifest(folder)
    terminal.show(report, as_json=json)
    report.require_intact()
