"""`hlap-export lint`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.cli.options import Debug, Json


def lint(
    export_dir: Annotated[Path, typer.Argument(help="What `export` wrote, or an .onnx file.")],
    *,
    target: Annotated[str, typer.Option(help="The compiler: tensorrt or tensorrt-rtx.")] = "tensorrt-rtx",
    shapes: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=MIN:OPT:MAX", help="Sizes of an input, as 1x1:1x64:1x128; repeat it for each."),
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what a compiler would refuse or misread, and in which layer; exit code 1 for an error."""
    from hlap_export.lint.profile_rules import parse_profile

    report = hlap_export.lint(export_dir, target=target, profile=parse_profile(shapes or []))
    terminal.show(report, as_json=json)
    report.require_passed()
