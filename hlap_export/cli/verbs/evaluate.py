"""`hlap-export eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import evaluate_needs, model_at
from hlap_export.cli.options import Debug, Json, MaxMemory


def evaluate(
    engine: Annotated[Path, typer.Argument(help="The engine that answers.")],
    *,
    tasks: Annotated[str, typer.Option(help="Names of lm_eval's tasks, with commas between.", show_default=False)],
    baseline: Annotated[Path | None, typer.Option(help="The dense engine, to be asked the same.")] = None,
    tasks_folder: Annotated[Path | None, typer.Option(help="Folder with YAML files of further tasks.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; left out, the task's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask so many questions of each task; left out, all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts that run together.")] = 8,
    chat: Annotated[bool, typer.Option("--chat", help="Ask through the model's chat template.")] = False,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Score an engine on tasks of EleutherAI's lm_eval."""
    from hlap_export.evaluate import EvaluateOptions

    options = EvaluateOptions(
        tasks_folder=tasks_folder, num_fewshot=num_fewshot, limit=limit, batch_size=batch_size, chat=chat
    )
    engines = [model_at(folder, kind="engine") for folder in (engine, baseline) if folder is not None]
    terminal.budget(max_memory).allow(evaluate_needs(engines, batch_size=batch_size), engine)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    with terminal.progress().stage("eval") as step:
        report = hlap_export.evaluate(engine, names, baseline=baseline, options=options, on_progress=step)
    terminal.show(report, as_json=json)
