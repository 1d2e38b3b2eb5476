"""What `verify` found, for a console: checks, agreement, perplexity, and where a failed check goes wrong."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text as Line

from hlap_export.report import wording
from hlap_export.verify.report import Agreement, Check, EnginePerplexity, Fault, Perplexity, VerifyReport


def render_verification(report: VerifyReport) -> RenderableType:
    """Everything that one verification found."""
    parts: list[RenderableType] = [_checks(report.checks), _agreement(report.agreement)]
    if report.perplexity is not None:
        parts.append(_perplexity(report.perplexity))
    if report.fault is not None:
        parts.append(_fault(report.fault))
    return Group(*parts, Padding(Line("\n".join(_notes(report)), style="dim"), (0, 1, 1, 2)))


def _checks(checks: tuple[Check, ...]) -> Table:
    table = _table("check", "value", "bound", "")
    for check in checks:
        bound = f"{check.rule} {wording.in_digits(check.bound)}"
        mark = Line("✓", style="green") if check.passed else Line("✗ failed", style="bold red")
        table.add_row(check.name, wording.in_digits(check.value), bound, mark)
    return table


def _agreement(rows: tuple[Agreement, ...]) -> Table:
    table = _table("agreement", "tokens", "mean error", "mean KL", "best token", "best five")
    for row in rows:
        table.add_row(
            row.check.removesuffix(" logits"),
            str(row.num_tokens),
            wording.in_digits(row.mean_error_ratio),
            wording.in_digits(row.mean_kl_nats),
            f"{100 * row.top1_agreement:.1f} %",
            f"{100 * row.top5_agreement:.1f} %",
        )
    return table


def _perplexity(measured: Perplexity) -> RenderableType:
    table = _table("perplexity", "", "95 % interval", "")
    for name, engine in (("dense", measured.baseline), ("this engine", measured.candidate)):
        if engine is not None:
            table.add_row(name, f"{engine.perplexity:.2f}", _interval(engine), "")
    if measured.increase_ratio is not None:
        change, low, high = (
            f"{100 * (ratio or 0.0):+.2f} %".replace("-", "−")
            for ratio in (measured.increase_ratio, measured.increase_ratio_low, measured.increase_ratio_high)
        )
        table.add_row("change", change, f"{low} to {high}", "same windows")
    return table


def _interval(engine: EnginePerplexity) -> str:
    return f"{engine.perplexity_low:.2f} to {engine.perplexity_high:.2f}"


def _fault(fault: Fault) -> RenderableType:
    table = _table("part", "its own error", "")
    for part in fault.parts:
        is_beyond = part.error_ratio > fault.bound
        is_named = part.name == fault.part and fault.is_beyond_bound
        mark = Line(f"✗ {fault.tensor.name if fault.tensor else ''}", style="bold red") if is_named else Line("")
        table.add_row(part.name, wording.in_digits(part.error_ratio), mark, style=None if is_beyond else "dim")
    about = f"of {fault.check}, from the engine's own input to each part; bound {wording.in_digits(fault.bound)}"
    return Group(table, Padding(Line(about, style="dim"), (0, 1, 1, 2)))


def _notes(report: VerifyReport) -> list[str]:
    source = report.tokens
    text = (source.path or "").rsplit("/", 1)[-1] if source.kind == "text" else f"random tokens ({source.reason})"
    rows = ", ".join(str(length) for length in report.prompt_lengths)
    notes = [
        f"{report.engine} in {report.dtype}, {report.provider}, {wording.in_threads(report.threads)}; tokens of {text}",
        f"prompts of {rows} tokens and {report.num_decode_steps} decode steps each; "
        f"longest context {report.context_length or 'not more'}, of {report.context_limit} that fit",
    ]
    if measured := report.perplexity:
        notes.append(f"perplexity of {text}, {measured.num_windows} windows of {measured.window_length} tokens")
    if report.folds is not None:
        notes.append(
            f"{len(report.folds.layers)} layers of the checkpoint compared with {report.folds.dense}, unfolded"
        )
    if report.reference_streamed_layers:
        notes.append(f"{report.reference_streamed_layers} layers of the reference were loaded one at a time")
    return notes


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    for index, column in enumerate(columns):
        is_last = index == len(columns) - 1 and not column
        table.add_column(column, justify="right" if index and not is_last else "left", no_wrap=not is_last)
    return table
