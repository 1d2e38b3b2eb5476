"""`hlap-export prune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import model_at, prune_needs
from hlap_export.cli.options import Debug, Json, MaxMemory, Model, OutFolder


def prune(
    model: Model = None,
    *,
    plan: Annotated[Path, typer.Option("--plan", help="The plan file.", show_default=False)],
    out: OutFolder,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a plan: write a Hugging Face checkpoint, alphas folded into the weights, fitted weights beside the plan."""
    from hlap_export.hub import resolve_model
    from hlap_export.plan.pruning_plan import load_plan
    from hlap_export.plan.side_file import side_file_of

    folder, planned = resolve_model(model), load_plan(plan)
    terminal.budget(max_memory).allow(prune_needs(model_at(folder), planned), out)
    with terminal.progress().stage("prune", in_bytes=True) as step:
        hlap_export.prune(folder, planned, out, fitted=side_file_of(plan), on_progress=step)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written
