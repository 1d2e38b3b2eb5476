"""`hlap-export run`."""

from __future__ import annotations

from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.cli.options import Debug, Json, MaxMemory, Model, OutFolder, RecipeFile, TrustRemoteCode
from hlap_export.recipe import BundleTarget, EngineName


def run(
    model: Model = None,
    *,
    out: OutFolder,
    recipe: RecipeFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out: finished stages are reused.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    max_memory: MaxMemory = None,
    engine: Annotated[
        EngineName | None, typer.Option(help="What to build, in place of the recipe's or of onnxruntime.")
    ] = None,
    bundle: Annotated[
        BundleTarget | None, typer.Option(help="Also write bundle/, the folder that this serving stack loads.")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline: plan, prune, export, build, verify, bench, bundle, report."""
    summary = hlap_export.run(
        model,
        out,
        recipe=recipe,
        resume=resume,
        trust_remote_code=trust_remote_code,
        max_memory=terminal.budget(max_memory).max_memory,
        engine=engine,
        bundle=bundle,
        progress=terminal.progress(),
    )
    terminal.show(summary, as_json=json)
    summary.require_passed()
