"""What the command line prints: results on stdout, errors on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import singledispatch
from itertools import groupby

from pydantic import BaseModel
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from hlap_export.bench.report import BenchReport
from hlap_export.budget import Budget, parse_size
from hlap_export.doctor import Diagnosis
from hlap_export.evaluate.report import EvaluationReport
from hlap_export.evaluate.screen import render_evaluation
from hlap_export.gate.report import GateReport
from hlap_export.gate.screen import render_gate
from hlap_export.generate import Generation
from hlap_export.inspection import Inspection
from hlap_export.integrity import ManifestReport
from hlap_export.lint.report import LintReport
from hlap_export.lint.screen import render_lint
from hlap_export.manifest import FILE_DIGEST
from hlap_export.progress import Progress
from hlap_export.report import wording
from hlap_export.report.compare_screen import render_comparison
from hlap_export.report.comparison import Comparison
from hlap_export.report.compose import latency_rows, size_rows
from hlap_export.report.curve_table import curve_table
from hlap_export.report.integrity_screen import render_integrity
from hlap_export.report.screen import render_latency, render_summary
from hlap_export.report.summary import LayerRow, Summary
from hlap_export.report.verification import render_verification
from hlap_export.verify.report import VerifyReport

WIDTH_WITHOUT_TERMINAL = 100


def progress() -> Progress:
    """Progress on stderr."""
    return Progress()


def budget(max_memory: str | None = None) -> Budget:
    """What steps may use, announced on stderr.

    Raises:
        BudgetError: `max_memory` isn't a size.
    """
    size = None if max_memory is None else parse_size(max_memory, where="--max-memory")
    return Budget(max_memory=size, tell=progress().note)


def show(result: BaseModel, *, as_json: bool) -> None:
    """Print a result on stdout: a table for a person, JSON for a machine."""
    if as_json:
        sys.stdout.write(result.model_dump_json(indent=2) + "\n")
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_TERMINAL
    console.print(render(result))


def print_error(paragraph: str) -> None:
    """One paragraph on stderr; in a terminal it is wrapped at words."""
    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), paragraph), soft_wrap=not console.is_terminal)


def typed_lines() -> Iterator[str]:
    """What a person types, line by line, until the end of the input or Ctrl-C; a pipe is one text.

    The line feed at the end of a pipe is its writer's habit (`echo`), not a part of the text.
    """
    if not someone_types():
        yield sys.stdin.read().removesuffix("\n")
        return
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print_line("")
            return
        if line.strip():
            yield line


def someone_types() -> bool:
    """Whether the input comes from a person."""
    return sys.stdin.isatty()


def print_line(line: str) -> None:
    """A line on stderr, between what is written and what is typed."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(line, style="dim", markup=False)


def write_text(text: str) -> None:
    """A piece of generated text on stdout, at once."""
    sys.stdout.write(text)
    sys.stdout.flush()


ENDINGS = {
    "stop_token": "the model",
    "max_new_tokens": "--max-new-tokens",
    "longest_context": "the model's longest context",
    "interrupted": "Ctrl-C",
}


def end_text(generation: Generation, *, as_json: bool) -> None:
    """After a generated text: how fast it came, on stderr; or all of it as JSON."""
    if as_json:
        show(generation, as_json=True)
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    speed = generation.decode_tokens_per_second
    first = generation.first_token_ms
    parts = (
        f"{generation.num_prompt_tokens} tokens" + ("" if first is None else f" in {first:.0f} ms"),
        f"{len(generation.token_ids)} new tokens" + ("" if speed is None else f" at {speed:.1f} tokens/s"),
        f"ended by {ENDINGS[generation.ended_by]}",
    )
    print_line(", ".join(parts))


@singledispatch
def render(result: BaseModel) -> RenderableType:
    """A result as something that rich prints."""
    raise NotImplementedError(type(result).__name__)


@render.register
def _(result: Summary) -> RenderableType:
    return render_summary(result)


@render.register
def _(result: ManifestReport) -> RenderableType:
    return render_integrity(result)


@render.register
def _(result: VerifyReport) -> RenderableType:
    return render_verification(result)


@render.register
def _(result: BenchReport) -> RenderableType:
    notes = Text("\n".join(_doubts(result)), style="yellow")
    return Group(
        render_latency(latency_rows(result), size_rows(result)),
        *([Padding(notes, (0, 1, 1, 2))] if notes.plain else []),
    )


def _doubts(result: BenchReport) -> list[str]:
    """Why not to trust what was timed, and what wasn't timed as it was asked for."""
    has_stars = any(row.noisy for row in result.latency)
    doubts = wording.doubts(has_stars=has_stars, disturbed=result.conditions.disturbed)
    for length in result.adjusted_lengths:
        used = "left out" if length.used is None else f"cut to {length.used} tokens"
        doubts.append(f"{length.phase} of {length.asked} tokens {used}: {length.reason}")
    return doubts


@render.register
def _(result: LintReport) -> RenderableType:
    return render_lint(result)


@render.register
def _(result: GateReport) -> RenderableType:
    return render_gate(result)


@render.register
def _(result: EvaluationReport) -> RenderableType:
    return render_evaluation(result)


@render.register
def _(result: Comparison) -> RenderableType:
    return render_comparison(result)


@render.register
def _(result: Diagnosis) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    for column in ("engine", "version", "build", "run", "why"):
        table.add_column(column, no_wrap=column != "why")
    for engine in result.engines:
        table.add_row(
            engine.engine,
            engine.version or "–",
            _mark(engine.can_build),
            _mark(engine.can_run),
            Text(engine.reason, style="" if engine.can_run else "dim"),
        )
    machine = result.machine
    free = "unknown" if result.memory_free_bytes is None else wording.in_bytes(result.memory_free_bytes)
    lines = (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}",
        f"memory {wording.in_bytes(machine['memory_bytes'])}, {free} free",
        f"disk {wording.in_bytes(result.disk_free_bytes)} free here",
        result.nvidia_reason,
        ", ".join(f"{name} {version}" for name, version in result.versions.items()),
    )
    return Group(table, Padding(Text("\n".join(lines), style="dim"), (0, 1, 1, 2)))


@render.register
def _(result: Inspection) -> RenderableType:
    if result.summary is not None:
        return render_summary(result.summary)
    heading = Text.assemble((result.kind, "bold"), f" of family {result.family}   ", (result.path, "dim"))
    strip = Text.assemble(
        (wording.layer_strip(result.layers), "cyan"), "   ", (wording.layer_legend(result.layers), "dim")
    )
    parts: list[RenderableType] = [heading, Text(), strip]
    if changes := wording.layer_changes(result.layers):
        parts.append(Text("   ".join(changes)))
    parts.append(_layer_table(result))
    if result.curves:
        parts.append(curve_table(result.curves))
    return Padding(Group(*parts, _facts(result)), (1, 1, 1, 1))


def _layer_table(result: Inspection) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1), pad_edge=False)
    for column in ("layer", "attention", "query heads", "KV heads", "alpha"):
        table.add_column(column, justify="left" if column == "attention" else "right")
    for rows in _runs_of_equal_layers(result.layers):
        row = rows[0]
        alpha = "" if row.alpha is None else f"{row.alpha:g}"
        cached = str(row.num_kv_heads) if row.attention == "full" else f"{row.num_kv_heads} (no cache)"
        table.add_row(
            str(row.layer) if len(rows) == 1 else f"{row.layer} to {rows[-1].layer}",
            row.attention.replace("_", " "),
            str(row.num_heads) if row.attention == "full" else "–",
            cached,
            alpha,
            style=None if row.is_pruned else "dim",
        )
    return table


def _runs_of_equal_layers(layers: tuple[LayerRow, ...]) -> list[list[LayerRow]]:
    """Neighbours that differ in nothing but their index share a row of the table."""
    return [list(run) for _, run in groupby(layers, key=lambda row: row.model_copy(update={"layer": 0}))]


def _facts(result: Inspection) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in {**result.facts, **result.parameters}.items():
        if name in ONLY_IN_JSON:
            continue
        table.add_row(*_named_fact(name, value))
    for name, digest in result.made_from.items():
        table.add_row(f"made from {name}", f"{digest.removeprefix(FILE_DIGEST)[:16]}…")
    if result.is_intact is not None:
        intact = "as written" if result.is_intact else Text("changed since it was written", style="bold red")
        table.add_row("files", intact)
    if result.versions:
        table.add_row("made with", ", ".join(f"{name} {version}" for name, version in result.versions.items()))
    return table


LABELS = {
    "size_bytes": "size on disk",
    "num_parameters": "parameters",
    "kv_bytes_per_token": "KV cache per token",
    "removed_ratio": "linear weights removed, as the paper counts",
    "removed_folded_ratio": "linear weights removed, folds included",
    "kv_removed_ratio": "KV cache removed",
    "weight_bytes_before": "weights before optimisation",
}
# Their ratios say the same, and better.
ONLY_IN_JSON = {"base", "removed", "removed_folded", "kv_heads", "kv_heads_removed"}


def _named_fact(name: str, value: object) -> tuple[str, str]:
    """A fact in words, its unit taken from its name: ("kv_bytes_per_token", 3072) -> (..., "3.00 KiB")."""
    label = LABELS.get(name) or name.removeprefix("num_").removesuffix("_bytes").replace("_", " ")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return label, str(value)
    if "bytes" in name:
        return label, wording.in_bytes(value)
    if name.endswith("_ratio"):
        return label, f"{100 * value:.3f} %"
    return label, wording.in_numbers(value) if name == "num_parameters" else f"{value:g}"


def _mark(works: bool) -> Text:
    return Text("yes", style="green") if works else Text("no", style="red")
