"""`hlap-export plan`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import SearchSize, model_at, search_needs
from hlap_export.cli.options import Debug, Json, MaxMemory, Model, RecipeFile, Text, TrustRemoteCode
from hlap_export.recipe import Method, effective_recipe, parse_alphas


def plan(
    model: Model = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="The plan file to write.", show_default=False)],
    method: Annotated[
        Method | None, typer.Option(help="harp (the default) searches each alpha; fixed takes --alpha as given.")
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option(help="How many of the last layers lose attention; left out, a quarter.")
    ] = None,
    alpha: Annotated[
        list[str] | None, typer.Option(metavar="LAYER=ALPHA", help="For method fixed; repeat it for each layer.")
    ] = None,
    text: Text = None,
    recipe: RecipeFile = None,
    trust_remote_code: TrustRemoteCode = False,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Decide which layers lose attention, and each one's alpha."""
    from hlap_export.checkpoint import read_layout
    from hlap_export.hub import resolve_model
    from hlap_export.inspection import inspect_plan
    from hlap_export.plan import CalibrationOptions

    asked, budget = effective_recipe(recipe, model), terminal.budget(max_memory)
    section, folder = asked.plan, resolve_model(asked.model)
    method, num_layers = method or section.method, section.num_layers if num_layers is None else num_layers
    if method == "harp":
        size = SearchSize.of(read_layout(folder), num_layers, section.windows, section.window_length)
        budget.allow(search_needs(model_at(folder), size, room_bytes=budget.room_bytes), out)
    work = out.with_name(f".{out.name}.search")  # goes on there if it was killed
    with terminal.progress().stage("plan") as step:
        made = hlap_export.plan(
            folder,
            method=method,
            num_layers=num_layers,
            alphas=parse_alphas(alpha or []) or section.alphas,
            calibration=CalibrationOptions(
                text=text or section.text,
                windows=section.windows,
                window_length=section.window_length,
                trust_remote_code=trust_remote_code,
                max_memory=budget.max_memory,
                work=work,
            ),
            on_progress=step,
        )
    made.save(out)
    shutil.rmtree(work, ignore_errors=True)
    terminal.show(inspect_plan(out, read_layout(folder)), as_json=json)
