"""The eval verb: lm_eval's tasks on an engine, and on the dense one beside it."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any, cast
from unittest import mock

from hlap_export.artifacts import machine_facts, package_versions
from hlap_export.engines import require_intact
from hlap_export.errors import BackendMissing, RecipeError, TextError
from hlap_export.evaluate.report import EvaluationReport, Score
from hlap_export.on_progress import OnProgress, ignore_progress

SEED = 1234
"""Of what lm_eval draws: few-shot examples, answers where a task samples, resampling for standard errors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateOptions:
    """How tasks are run.

    Attributes:
        tasks_folder: YAML files of tasks beside lm_eval's own; None for none.
        num_fewshot: examples before each question; None for what a task says.
        limit: questions of each task; None for all.
        batch_size: texts that run together.
        chat: put questions into the model's chat template.
    """

    tasks_folder: Path | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    batch_size: int = 8
    chat: bool = False


def evaluate(
    engine_dir: Path,
    tasks: Sequence[str],
    *,
    baseline: Path | None = None,
    options: EvaluateOptions | None = None,
    on_progress: OnProgress = ignore_progress,
) -> EvaluationReport:
    """Let lm_eval ask an engine the questions of some tasks.

    Args:
        engine_dir: what `build` wrote, with a tokenizer in it.
        tasks: their names, lm_eval's own or those of `options.tasks_folder`.
        baseline: an engine to compare with, asked the same.
        options: how the tasks are run; None for the defaults.
        on_progress: is told how many texts have been scored or written.

    Raises:
        BackendMissing: lm_eval isn't installed, or the engine can't run here.
        ArtefactError: a folder isn't an engine, or damaged.
        RecipeError: an unknown task, or one that wants what engines don't have.
        TextError: a task's questions can't be read.
    """
    _require_lm_eval()
    options = options or EvaluateOptions()
    manifests = {"engine": require_intact(engine_dir)}
    if baseline is not None:
        manifests["baseline"] = require_intact(baseline)
    with _quiet():
        manager = _task_manager(tasks, options)
        scores = scores_of(_asked(engine_dir, tasks, manager, options, on_progress))
        compared = None if baseline is None else scores_of(_asked(baseline, tasks, manager, options, on_progress))
    return EvaluationReport(
        engine=str(engine_dir),
        baseline=None if baseline is None else str(baseline),
        inputs={name: manifest.digest for name, manifest in manifests.items()},
        scores=tuple(scores if compared is None else map(_beside, scores, compared)),
        settings={
            "tasks": list(tasks),
            "num_fewshot": options.num_fewshot,
            "limit": options.limit,
            "batch_size": options.batch_size,
            "chat": options.chat,
            "seed": SEED,
        },
        versions={**package_versions(), "lm_eval": metadata.version("lm_eval")},
        machine=machine_facts(),
    )


def _require_lm_eval() -> None:
    if importlib.util.find_spec("lm_eval") is None:
        raise BackendMissing(
            where="hlap-export eval",
            expected="the package lm_eval, which has the tasks",
            found="it isn't installed",
            fix="pip install 'hlap-export[eval]' (or pip install lm_eval)",
        )


def _task_manager(tasks: Sequence[str], options: EvaluateOptions) -> Any:
    """What finds tasks by name.

    Raises:
        RecipeError: an unknown task.
    """
    from lm_eval.tasks import TaskManager

    if options.tasks_folder is not None:
        # Alone first: to read the names of lm_eval's own 14,000 tasks takes seconds.
        own: Any = cast(Any, TaskManager)(include_path=str(options.tasks_folder), include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    manager: Any = cast(Any, TaskManager)(include_path=options.tasks_folder and str(options.tasks_folder))
    known: list[str] = manager.all_tasks
    for task in tasks:
        if task not in known:
            close = get_close_matches(task, known, n=3)
            raise RecipeError(
                where="--tasks",
                expected="names of lm_eval's tasks, or of those in --tasks-folder",
                found=repr(task),
                fix=f"did you mean {', '.join(close)}?" if close else "`lm-eval ls tasks` lists them",
            )
    return manager


def _asked(
    engine_dir: Path, tasks: Sequence[str], manager: Any, options: EvaluateOptions, on_progress: OnProgress
) -> dict[str, Any]:
    """lm_eval's own results for one engine."""
    from lm_eval import evaluator

    from hlap_export.evaluate.engine_lm import EngineLM

    with closing(EngineLM(engine_dir, batch_size=options.batch_size, on_progress=on_progress)) as lm:
        try:
            return cast(Any, evaluator).simple_evaluate(
                model=lm,
                tasks=list(tasks),
                num_fewshot=options.num_fewshot,
                limit=options.limit,
                batch_size=options.batch_size,
                apply_chat_template=options.chat,
                task_manager=manager,
                log_samples=False,
                random_seed=SEED,
                numpy_random_seed=SEED,
                torch_random_seed=SEED,
                fewshot_random_seed=SEED,
            )
        except OSError as error:  # what `datasets` raises for data that is missing, or on the far side of no network
            raise TextError(
                where=f"the data of {', '.join(tasks)}",
                expected="questions that can be read, or downloaded from the Hugging Face hub",
                found=" ".join(str(error).split())[:200] or type(error).__name__,
                fix="connect to the network, or write a task that reads a local file (--tasks-folder)",
            ) from error


def scores_of(results: dict[str, Any]) -> list[Score]:
    """Every metric of every task and group, in lm_eval's order."""
    return [score for task, metrics in results["results"].items() for score in _task_scores(task, metrics, results)]


def _task_scores(task: str, metrics: dict[str, Any], results: dict[str, Any]) -> list[Score]:
    scores: list[Score] = []
    for name, value in metrics.items():
        metric, _, filtered = name.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = metrics.get(f"{metric}_stderr,{filtered}")
        samples: dict[str, int] = results["n-samples"].get(task, {})
        scores.append(
            Score(
                task=task,
                version=str(results["versions"].get(task, "")),
                metric=metric,
                filter=filtered,
                value=_finite(value),
                standard_error=_finite(error),
                higher_is_better=results["higher_is_better"].get(task, {}).get(metric),
                num_samples=samples.get("effective"),
                num_fewshot=results["n-shot"].get(task),
            )
        )
    return scores


def _finite(found: Any) -> float | None:
    """A number that JSON can hold; lm_eval has "N/A", infinite perplexities and means of nothing as well."""
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def _beside(score: Score, baseline: Score) -> Score:
    return score.model_copy(update={"baseline": baseline.value, "baseline_standard_error": baseline.standard_error})


@contextmanager
def _quiet() -> Generator[None]:
    """Keep lm_eval's notes and bars off the terminal: stdout is for the result, and our own bar says how far it is."""
    from tqdm import std

    bar = cast(Any, std.tqdm)
    start: Callable[..., None] = bar.__init__

    def start_disabled(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{**options, "disable": True})

    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with mock.patch.object(bar, "__init__", start_disabled), redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
