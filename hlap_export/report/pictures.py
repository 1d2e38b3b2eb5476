"""What each picture of a report shows, from the summary's rows."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from hlap_export.report import wording
from hlap_export.report.charts.bars import Pair, pair_chart
from hlap_export.report.charts.intervals import Interval, interval_chart
from hlap_export.report.charts.line_chart import Axis, Line, Point, line_chart
from hlap_export.report.charts.scales import padded
from hlap_export.report.summary import AlphaCurve, Extrapolated, Latency, Phase, RemovalCurve, Size, Summary

EngineName = Literal["dense", "pruned"]
ENGINES: tuple[EngineName, ...] = ("dense", "pruned")
PHASES: tuple[Phase, ...] = ("prefill", "decode")
STEEP = 20
"""Where the largest value is so many times the smallest, perplexity is drawn in powers."""
WIDE = 80
"""Likewise for tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A picture and what stands below it."""

    svg: str
    caption: str


def search_figure(summary: Summary) -> Figure | None:
    """Perplexity against alpha, a line for each layer; None where nothing was searched."""
    curves = summary.search
    if not curves:
        return None
    dense = next(row.dense for row in summary.perplexities if row.measured_on == "calibration")
    values = [dense, *(value for curve in curves for value in curve.perplexities)]
    is_log = max(values) / min(values) > STEEP
    low, high = (min(values), max(values)) if is_log else padded(values)
    lines = [_curve_line(curve, index / max(len(curves) - 1, 1)) for index, curve in enumerate(curves)]
    ends = (min(min(c.alphas) for c in curves), max(max(c.alphas) for c in curves))
    lines.append(
        Line(name="dense", style="dense dashed", points=tuple(Point(x=x, y=dense, is_marked=False) for x in ends))
    )
    svg = line_chart(
        tuple(lines),
        Axis(title="alpha of the layer", low=ends[0], high=ends[1]),
        Axis(title="perplexity", low=low, high=high, is_log=is_log),
        label="Perplexity on the calibration text against each layer's alpha",
        named_at_end=True,
    )
    return Figure(
        svg=svg,
        caption="Layer by layer in the order of the search: perplexity on the calibration text with this layer's alpha "
        "varied and those before it set. The dot is what was chosen.",
    )


def _curve_line(curve: AlphaCurve, shade: float) -> Line:
    points = tuple(
        Point(
            x=alpha,
            y=perplexity,
            is_marked=alpha == curve.chosen,
            hint=f"layer {curve.layer}: alpha {alpha:g}, perplexity {perplexity:.2f}",
        )
        for alpha, perplexity in zip(curve.alphas, curve.perplexities, strict=True)
    )
    return Line(name=f"layer {curve.layer}", style="shaded", points=points, shade=shade)


def removal_figure(summary: Summary) -> Figure | None:
    """Perplexity against latency, removal by removal; None where the plan's method went no such way."""
    curves = [curve for curve in summary.removals if len(curve.points) > 1]
    if not curves:
        return None
    points = [point for curve in curves for point in curve.points]
    low, high = padded([value for p in points for value in (p.increase_ratio_low, p.increase_ratio_high)])
    left, right = padded([point.latency_ratio for point in points], share=0.03)
    svg = line_chart(
        tuple(_removal_line(curve) for curve in curves),
        Axis(title="latency, relative to the dense model", low=left, high=right),
        Axis(title="perplexity", low=low, high=high, label=wording.percent_briefly),
        label="Change of perplexity against latency, removal by removal",
    )
    return Figure(
        svg=svg,
        caption="From the dense model (right) one removal after the other: change of the perplexity on calibration "
        "windows that nothing was fitted on, with 95 % intervals, against counted or measured latency. The large "
        "dot is this plan.",
    )


def _removal_line(curve: RemovalCurve) -> Line:
    points = tuple(
        Point(
            x=point.latency_ratio,
            y=point.increase_ratio,
            low=point.increase_ratio_low,
            high=point.increase_ratio_high,
            is_marked=True,
            is_large=point.is_chosen,
            hint=f"{curve.method}: {point.removed or 'dense'}, {wording.percent(point.increase_ratio)}",
        )
        for point in curve.points
    )
    return Line(name=curve.method, style="pruned" if curve.is_own else "dense", points=points)


def latency_figures(summary: Summary) -> list[Figure]:
    """One picture for each phase and batch that has two lengths or more: time against tokens, dense and pruned."""
    groups = [(kind, tuple(rows)) for kind, rows in groupby(sorted(summary.latency, key=_kind), key=_kind)]
    return [_latency_figure(summary, PHASES[phase], batch, rows) for (phase, batch), rows in groups if len(rows) > 1]


def _kind(row: Latency) -> tuple[int, int]:
    return PHASES.index(row.phase), row.batch


def _latency_figure(summary: Summary, phase: Phase, batch: int, rows: tuple[Latency, ...]) -> Figure:
    rows = tuple(sorted(rows, key=lambda row: row.num_tokens))
    lines = [line for name in ENGINES for line in _engine_lines(name, rows)]
    has_limits = len(lines) > len(ENGINES)
    further = [row for row in summary.extrapolated if row.batch == batch] if phase == "decode" else []
    if further:
        lines += [_further(name, rows[-1], further) for name in ENGINES]
    rows_said = "" if batch == 1 else f", {batch} rows at once"
    what = "prompt tokens" if phase == "prefill" else "tokens in the cache"
    caption = f"{phase.capitalize()}{rows_said}: median with its 95 % interval"
    caption += "; dashed: what arithmetic and memory traffic need at the least" if has_limits else ""
    caption += "; dotted: extrapolated, not measured" if further else ""
    times = [point.high or point.y for line in lines for point in line.points]
    return Figure(
        svg=line_chart(
            tuple(lines),
            _token_axis(what, sorted({point.x for line in lines for point in line.points})),
            Axis(title="milliseconds", low=0.0, high=1.06 * max(times)),
            label=f"{phase} time against {what}{rows_said}, dense and pruned",
        ),
        caption=caption + ".",
    )


def _token_axis(title: str, tokens: list[float]) -> Axis:
    is_log = tokens[-1] / max(tokens[0], 1) > WIDE
    return Axis(
        title=title,
        low=tokens[0] if is_log else 0.0,
        high=tokens[-1],
        is_log=is_log,
        ticks=tuple(tokens),
        label=wording.in_tokens,
    )


def _engine_lines(name: EngineName, rows: tuple[Latency, ...]) -> list[Line]:
    """What was measured of one engine, and the least time that the machine allows it."""
    timed = [(row.num_tokens, row.dense if name == "dense" else row.pruned) for row in rows]
    measured = tuple(
        Point(
            x=tokens,
            y=timing.p50_ms,
            low=timing.p50_low_ms,
            high=timing.p50_high_ms,
            hint=f"{name}, {tokens} tokens: {wording.in_ms(timing.p50_ms)}, p90 {wording.in_ms(timing.p90_ms)}",
        )
        for tokens, timing in timed
    )
    least = tuple(
        Point(x=tokens, y=timing.limit_ms, is_marked=False) for tokens, timing in timed if timing.limit_ms is not None
    )
    lines = [Line(name=name, style=name, points=measured)]
    return [*lines, Line(name="", style=f"{name} dashed", points=least)] if least else lines


def _further(name: EngineName, last: Latency, further: list[Extrapolated]) -> Line:
    """From the last measured point on."""
    is_dense = name == "dense"
    points = [Point(x=last.num_tokens, y=(last.dense if is_dense else last.pruned).p50_ms, is_marked=False)]
    points += [
        Point(x=row.num_tokens, y=row.dense_ms if is_dense else row.pruned_ms, is_marked=False) for row in further
    ]
    return Line(name="", style=f"{name} dotted", points=tuple(points))


def speedup_figure(summary: Summary) -> Figure:
    """How many times faster each step is, with its interval."""
    rows = tuple(
        Interval(
            name=wording.of_step_briefly(row.phase, row.num_tokens, row.batch),
            value=row.speedup,
            said=wording.of_speedup(row),
            low=row.speedup_low,
            high=row.speedup_high,
            is_noisy=row.noise is not None,
        )
        for row in summary.latency
    )
    caption = "Dense time / pruned time: above 1 the pruned engine is faster. 95 % interval over alternating pairs."
    if summary.has_stars:
        caption += " * and hollow: repeats spread widely, don't trust the last digit."
    return Figure(
        svg=interval_chart(rows, title="speedup over the dense engine", label="Speedup of each step with its interval"),
        caption=caption,
    )


def size_figure(sizes: tuple[Size, ...]) -> Figure:
    """Dense and pruned bars for each size."""
    pairs = tuple(
        Pair(
            name=size.name,
            dense=size.dense,
            pruned=size.pruned,
            dense_words=wording.of_size(size, size.dense),
            pruned_words=wording.of_size(size, size.pruned),
            change=wording.percent(-size.removed_ratio),
        )
        for size in sizes
    )
    return Figure(
        svg=pair_chart(pairs, label="Sizes of the dense and the pruned engine"),
        caption="Grey: the dense engine. Each row has its own scale.",
    )
