"""`hlap-export build`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import build_needs, model_at
from hlap_export.cli.options import Debug, Json, MaxMemory, OutFolder, RecipeFile
from hlap_export.recipe import effective_recipe, tensorrt_options


def build(
    export_dir: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    *,
    out: OutFolder,
    engine: Annotated[str, typer.Option(help="`hlap-export doctor` lists what works here.")] = "onnxruntime",
    recipe: RecipeFile = None,
    capacity: Annotated[
        int | None, typer.Option(help="TensorRT: tokens of each row's KV cache; left out, the model's, 4096 at most.")
    ] = None,
    max_batch: Annotated[int | None, typer.Option(help="TensorRT: most rows that run together; left out, 4.")] = None,
    max_prompt: Annotated[
        int | None, typer.Option(help="TensorRT: most tokens of a prompt that run together; left out, 1024.")
    ] = None,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile an export into an engine; one that is there already is kept if the same request made it."""
    given = {"capacity": capacity, "max_batch": max_batch, "max_prompt": max_prompt}
    options = tensorrt_options(effective_recipe(recipe, None), engine, given)
    terminal.budget(max_memory).allow(build_needs(model_at(export_dir, kind="onnx")), out)
    progress = terminal.progress()
    with progress.stage("build"):
        hlap_export.build(export_dir, out, engine=engine, options=options, tell=progress.note)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written
