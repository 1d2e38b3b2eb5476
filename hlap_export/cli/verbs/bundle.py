"""`hlap-export bundle`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import bundle_needs, model_at
from hlap_export.cli.options import Debug, Json, MaxMemory, OutFolder


def bundle(
    engine: Annotated[Path, typer.Argument(help="The engine to serve.")],
    *,
    out: OutFolder,
    target: Annotated[str, typer.Option(help="ort-genai: the folder that onnxruntime-genai loads.")] = "ort-genai",
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Put an engine into the form that a serving stack loads."""
    terminal.budget(max_memory).allow(bundle_needs(model_at(engine, kind="engine")), out)
    with terminal.progress().stage("bundle"):
        hlap_export.bundle(engine, out, target=target)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written
