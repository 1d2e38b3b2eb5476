"""Scores of an engine on lm_eval's tasks, as they are stored and printed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Score(BaseModel):
    """One metric of one task.

    Attributes:
        task: its name, or that of a group of tasks.
        version: of the task's definition.
        metric: as lm_eval names it.
        filter: what was made of the answers before they were judged; "none" for nothing.
        value: of the engine; None where lm_eval's is no finite number.
        standard_error: of `value`; None where lm_eval has none.
        baseline: the same metric of the baseline; None without one.
        higher_is_better: None where it isn't known.
        num_samples: questions or texts; None for a group.
        num_fewshot: examples before each; None for a group.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    task: str
    version: str
    metric: str
    filter: str
    value: float | None
    standard_error: float | None
    baseline: float | None = None
    baseline_standard_error: float | None = None
    higher_is_better: bool | None
    num_samples: int | None
    num_fewshot: int | None


class EvaluationReport(BaseModel):
    """What an engine scored, and what has to be known to get the same again.

    Attributes:
        inputs: digests of what was evaluated, by name.
        settings: number of examples, limit, batch size, seeds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["hlap-export/evaluation/1"] = "hlap-export/evaluation/1"
    engine: str
    baseline: str | None
    inputs: dict[str, str]
    scores: tuple[Score, ...]
    settings: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
