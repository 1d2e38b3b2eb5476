"""`hlap-export inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.cli.options import Debug, Json


def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, plan, export, engine, bundle or run.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what an artefact is, layer by layer."""
    terminal.show(hlap_export.inspect(path), as_json=json)
