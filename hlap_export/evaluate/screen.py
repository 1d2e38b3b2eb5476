"""Scores in a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hlap_export.evaluate.report import EvaluationReport, Score

ARROWS = {True: "↑", False: "↓", None: " "}


def render_evaluation(report: EvaluationReport) -> RenderableType:
    """The report as something that rich prints."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    table.add_column("task", no_wrap=True)
    table.add_column("metric", no_wrap=True)
    columns = ["engine"] if report.baseline is None else ["baseline", "engine", "change"]
    for column in (*columns, "n", "shots"):
        table.add_column(column, justify="right", no_wrap=True)
    for score in report.scores:
        name = score.metric if score.filter == "none" else f"{score.metric}, {score.filter}"
        table.add_row(
            score.task,
            f"{ARROWS[score.higher_is_better]} {name}",
            *_values(score),
            "" if score.num_samples is None else str(score.num_samples),
            "" if score.num_fewshot is None else str(score.num_fewshot),
        )
    names = [report.engine] if report.baseline is None else [f"{report.engine} against {report.baseline}"]
    told = (
        *names,
        f"lm_eval {report.versions['lm_eval']}: n questions, each after so many shots; ± one standard error",
    )
    return Group(table, Padding(Text("\n".join(told), style="dim"), (0, 1, 1, 2)))


def _values(score: Score) -> list[str]:
    value = _measured(score.value, score.standard_error)
    if score.baseline is None:
        return [value]
    change = "–" if score.value is None else f"{score.value - score.baseline:+.4g}"
    return [_measured(score.baseline, score.baseline_standard_error), value, change]


def _measured(value: float | None, standard_error: float | None) -> str:
    if value is None:
        return "no number"
    return f"{value:.4g}" if standard_error is None else f"{value:.4g} ± {standard_error:.2g}"
