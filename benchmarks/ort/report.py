"""The result: every time and ratio as JSON, and the tables that a person reads."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.ort.limits import Limit
from benchmarks.ort.models import NUM_CONTEXTS
from hlap_export.bench.work import Point

# (candidate, baseline, precision of both): what is asked of each point, where both were timed.
RATIOS = (
    ("dense", "builder"),
    ("dense, all logits", "builder"),
    ("dense", "optimum"),
    ("dense", "torch"),
    ("pruned", "dense"),
)
# From here on the fixed costs of a step no longer count, and a pruned engine should come close to its limit.
LONG = {"prefill": 2048, "decode": 4095}


@dataclass(frozen=True, kw_only=True, slots=True)
class PointResult:
    """One point of one model in one precision.

    Attributes:
        milliseconds: contender -> median of its draws.
        draws: what each contender took, for every load and every length there, milliseconds.
        ratios: one for each of `RATIOS` whose contenders were timed.
        limit: pruned / dense as counted.
        left_out: contender -> why it wasn't timed.
    """

    model: str
    dtype: str
    point: Point
    milliseconds: dict[str, float]
    draws: tuple[dict[str, float], ...]
    ratios: tuple[Ratio, ...]
    limit: Limit
    left_out: dict[str, str] = field(default_factory=dict)

    def ratio(self, candidate: str, baseline: str) -> Ratio | None:
        """The ratio of these two, if both were timed."""
        found = [row for row in self.ratios if (row.candidate, row.baseline) == (candidate, baseline)]
        return found[0] if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Ratio:
    """The candidate's time / the baseline's in the same draw: the median of all draws, and their quartiles."""

    candidate: str
    baseline: str
    ratio: float
    low: float
    high: float

    @classmethod
    def of(cls, candidate: str, baseline: str, draws: Sequence[Mapping[str, float]]) -> Ratio:
        """From what each took in every draw."""
        low, middle, high = np.quantile([draw[candidate] / draw[baseline] for draw in draws], (0.25, 0.5, 0.75))
        return cls(candidate=candidate, baseline=baseline, ratio=float(middle), low=float(low), high=float(high))


def summary(results: Sequence[PointResult]) -> dict[str, Any]:
    """What the benchmark was made to tell: ours against the others, and pruned against its limit."""
    facts: dict[str, Any] = {}
    for dtype in dict.fromkeys(result.dtype for result in results):
        rows = [result for result in results if result.dtype == dtype]
        for candidate, baseline in RATIOS:
            if found := [ratio.ratio for row in rows if (ratio := row.ratio(candidate, baseline))]:
                facts[f"{dtype}: {candidate} / {baseline}"] = {
                    "median": statistics.median(found),
                    "worst": max(found),
                    "num_points": len(found),
                }
    above = [
        ratio.ratio - result.limit.ratio
        for result in results
        if result.point.num_tokens >= LONG[result.point.phase] and (ratio := result.ratio("pruned", "dense"))
    ]
    if above:
        facts["pruned / dense above its limit, long points"] = {
            "median": statistics.median(above),
            "worst": max(above),
            "num_points": len(above),
        }
    return facts


def markdown(facts: dict[str, Any], results: Sequence[PointResult]) -> str:
    """The result for a reader: what was asked, then a table for each model and precision."""
    machine, versions = facts["machine"], facts["versions"]
    lines = [
        f"# Latency in ONNX Runtime, {facts['date']}",
        "",
        f"{machine['cpu']}, {facts['threads']} threads, {machine['memory_bytes'] / 2**30:.0f} GiB; commit "
        f"{facts['commit']}, flavour {facts['flavour']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + ". Batch 1; in one process, in turn, all loaded anew several times, a decode step at "
        f"{NUM_CONTEXTS} contexts up to the one that is named: at one length about every sixth load of any graph has "
        "its attention's scratch across two pages of memory, and decodes a quarter slower. Ratios are medians of all "
        "loads and lengths, each of two steps in turn, in brackets their quartiles; below 1 the first is faster.",
        "",
        "| ratio | median | worst | points |",
        "|---|---|---|---|",
        *(
            f"| {name} | {value['median']:.3f} | {value['worst']:.3f} | {value['num_points']} |"
            for name, value in facts["summary"].items()
        ),
        "",
        "`dense, all logits` computes the logits of every token of a prompt, as the others' graphs do; `dense` those "
        "of the last one alone, all that generation needs. The limit is pruned / dense as counted from shapes: "
        "FLOPs for a prefill, bytes of weights and cache for a decode step. After the last attention a prefill goes on "
        "with its last token alone, which is why its limit is below the share of weights that pruning leaves.",
    ]
    for model, dtype in dict.fromkeys((result.model, result.dtype) for result in results):
        rows = [result for result in results if (result.model, result.dtype) == (model, dtype)]
        lines += ["", f"## {model}, {dtype}", "", *_table(rows)]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[PointResult]) -> list[str]:
    contenders = list(dict.fromkeys(name for row in rows for name in (*row.milliseconds, *row.left_out)))
    asked = [pair for pair in RATIOS if any(row.ratio(*pair) for row in rows)]
    header = ["step", *(f"{name}, ms" for name in contenders), *(f"{one} / {other}" for one, other in asked), "limit"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [f"{row.point.phase} {row.point.num_tokens}"]
        cells += [f"{row.milliseconds[name]:.2f}" if name in row.milliseconds else "-" for name in contenders]
        cells += [_cell(row.ratio(*pair)) for pair in asked]
        lines.append("| " + " | ".join([*cells, f"{row.limit.ratio:.3f}"]) + " |")
    left_out: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row.left_out.items():
            left_out.setdefault((name, reason), []).append(f"{row.point.phase} {row.point.num_tokens}")
    reasons = [f"{name} at {', '.join(points)}: {reason}." for (name, reason), points in left_out.items()]
    return [*lines, *(["", "Left out: " + " ".join(reasons)] if reasons else [])]


def _cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio.ratio:.3f} ({ratio.low:.3f}-{ratio.high:.3f})"
