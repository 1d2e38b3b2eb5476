"""`hlap-export bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import bench_needs, model_at
from hlap_export.cli.options import Debug, Json, MaxMemory, RecipeFile
from hlap_export.recipe import effective_recipe


def bench(
    candidate: Annotated[Path, typer.Argument(help="The engine to time.")],
    *,
    baseline: Annotated[Path, typer.Option(help="The dense engine.", show_default=False)],
    prompt_length: Annotated[list[int] | None, typer.Option(help="Tokens of a prefill; repeatable.")] = None,
    context_length: Annotated[list[int] | None, typer.Option(help="Tokens in the cache; repeatable.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows that run together; repeatable.")] = None,
    recipe: RecipeFile = None,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time an engine against the dense one, alternating in one process."""
    from hlap_export.bench import BenchOptions

    section = effective_recipe(recipe, None).bench
    engines = (model_at(candidate, kind="engine"), model_at(baseline, kind="engine"))
    lengths = {
        "prompt_lengths": tuple(prompt_length or section.prompt_lengths),
        "context_lengths": tuple(context_length or section.context_lengths),
    }
    batches = tuple(batch or section.batches)
    terminal.budget(max_memory).allow(bench_needs(*engines, **lengths, batches=batches), candidate)
    with terminal.progress().stage("bench") as step:
        report = hlap_export.bench(
            candidate,
            baseline,
            **lengths,
            options=BenchOptions(batches=batches, repeats=section.repeats, rounds=section.rounds),
            on_progress=step,
        )
    terminal.show(report, as_json=json)
