"""The table of a gate: what failed first, then what is unclear, then the rest."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hlap_export.gate.report import GateReport, Outcome, Verdict, in_words
from hlap_export.report.wording import in_bytes

ORDER: tuple[Outcome, ...] = ("failed", "unclear", "skipped", "passed")
MARKS = {"failed": ("✗", "bold red"), "unclear": ("?", "yellow"), "skipped": ("–", "dim"), "passed": ("✓", "green")}
SHORTER = {"at most": "≤", "at least": "≥", "against": "vs", " tokens": ""}


def render_gate(report: GateReport) -> RenderableType:
    """Every verdict with its numbers, the reasons below, and the outcome last."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), pad_edge=False)
    for column, justify in (
        ("", "left"),
        ("metric", "left"),
        ("candidate", "right"),
        ("reference", "right"),
        ("change", "right"),
    ):
        table.add_column(column, justify="right" if justify == "right" else "left", no_wrap=column != "metric")
    table.add_column("rule")
    verdicts = sorted(report.verdicts, key=lambda verdict: ORDER.index(verdict.outcome))
    for verdict in verdicts:
        table.add_row(
            Text(*MARKS[verdict.outcome]),
            Text(_shortly(verdict.metric), style=MARKS["failed"][1] if verdict.outcome == "failed" else ""),
            _number(verdict.name, verdict.value),
            _number(verdict.name, verdict.reference),
            in_words(verdict) if verdict.reference is not None else "",
            _shortly(verdict.rule),
        )
    notes = Text("\n".join(_notes(verdicts)), style="dim")
    return Group(
        table, *([Padding(notes, (0, 1, 1, 2))] if notes.plain else []), Padding(_outcome(report), (0, 1, 1, 2))
    )


def _outcome(report: GateReport) -> Text:
    counts = {
        "failed": report.num_failed,
        "unclear": report.num_unclear,
        "skipped": report.num_skipped,
        "passed": report.num_passed,
    }
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if report.accepted:
        said += f"; {report.candidate} is the baseline now, in {report.baseline}"
    return Text(f"{'✓' if report.passed else '✗'} {said}", style="green" if report.passed else "bold red")


def _notes(verdicts: list[Verdict]) -> list[str]:
    """Each reason once, with how many it is about; and noise, which explains wide intervals."""
    reasons: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.reason:
            reasons.setdefault(f"{verdict.outcome}: {verdict.reason}", []).append(verdict.metric)
        if verdict.noise and verdict.outcome in ("unclear", "failed"):
            reasons.setdefault(f"noisy: {verdict.noise}", []).append(verdict.metric)
    return [
        f"{reason} ({metrics[0]}{f' and {len(metrics) - 1} more' if metrics[1:] else ''})"
        for reason, metrics in reasons.items()
    ]


def _shortly(words: str) -> str:
    for long, short in SHORTER.items():
        words = words.replace(long, short)
    return words


def _number(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if "bytes" in name:
        return in_bytes(value)
    if name.endswith("_ratio"):
        return f"{value:.3f}"
    if name.endswith("_ms"):
        return f"{value:.3f} ms" if value < 10 else f"{value:.1f} ms"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"
