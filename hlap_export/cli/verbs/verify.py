"""`hlap-export verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import model_at, verify_needs
from hlap_export.cli.options import Debug, Json, MaxMemory, RecipeFile, Text
from hlap_export.recipe import effective_recipe


def verify(
    candidate: Annotated[Path, typer.Argument(help="The engine to check.")],
    *,
    reference: Annotated[Path, typer.Option(help="The checkpoint that it was made from.", show_default=False)],
    baseline: Annotated[Path | None, typer.Option(help="The dense engine, to compare perplexity with.")] = None,
    dense: Annotated[
        Path | None, typer.Option(help="The dense checkpoint: check the folded weights, layer by layer.")
    ] = None,
    text: Text = None,
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Measure each layer's own error even if no check failed.")
    ] = False,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that an engine computes what its checkpoint means; exit code 1 if it doesn't."""
    from hlap_export import reference_model
    from hlap_export.verify import VerifyOptions

    section, budget = effective_recipe(recipe, None).verify, terminal.budget(max_memory)
    options = VerifyOptions(
        windows=section.windows,
        window_length=section.window_length,
        decode_steps=section.decode_steps,
        context_length=section.context_length,
        bisect=bisect,
        dense=dense,
        max_memory=budget.max_memory,
    )
    models = (model_at(reference), model_at(candidate, kind="engine"))
    size = {"windows": options.windows, "window_length": options.window_length}
    budget.allow(verify_needs(*models, **size, room_bytes=budget.room_bytes), candidate)
    with terminal.progress().stage("verify") as step:
        report = hlap_export.verify(
            candidate,
            reference,
            text=text or section.text or reference_model.evaluation_text(),
            baseline=baseline,
            options=options,
            on_progress=step,
        )
    terminal.show(report, as_json=json)
    report.require_passed()
