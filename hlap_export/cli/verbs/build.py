"""`hlap-export build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import build_needs, model_at
from hlap_export.cli.options import Debug, Json, OutFolder


def build(
    export_dir: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    *,
    out: OutFolder,
    engine: Annotated[str, typer.Option(help="`hlap-export doctor` lists what works here.")] = "onnxruntime",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile an export into an engine."""
    terminal.budget().allow(build_needs(model_at(export_dir, kind="onnx")), out)
    with terminal.progress().stage("build"):
        hlap_export.build(export_dir, out, engine=engine)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written
