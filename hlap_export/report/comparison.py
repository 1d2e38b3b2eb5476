"""Several runs beside each other: accuracy against latency, and which of them nothing else beats.

Every run brings two engines, the pruned one and the dense one that it was compared with. Absolute numbers are used
where they mean the same in all runs (times of one machine, perplexity of one model's tokens on one text); else each
run is measured by its own dense engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hlap_export.errors import ArtefactError
from hlap_export.manifest import FILE_DIGEST
from hlap_export.report import wording
from hlap_export.report.sources import SHORT_DIGEST
from hlap_export.report.summary import ENGINE_ON_DISK, KV_CACHE, Latency, Perplexity, Phase, Summary, read_summary

Kind = Literal["dense", "pruned"]
VERIFY = "verify.json"
PHASES: tuple[Phase, ...] = ("decode", "prefill")


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Result):
    """One engine. `perplexity` is on the held-out text; `increase` is its change from the run's dense engine."""

    number: int
    run: str
    kind: Kind
    model: str
    method: str
    engine: str
    flavour: str
    dtype: str
    num_changed_layers: int
    num_layers: int
    perplexity: float
    increase_ratio: float
    kv_bytes_per_token: int
    engine_file_bytes: int
    passed: bool


class Place(_Result):
    """An engine in the picture: `time` to the right, `loss` upwards, both better where they are lower.

    Intervals hold 95 %; None where they weren't estimated. `on_front`: verified, and no other verified engine is as
    good in both and better in one.
    """

    number: int
    time: float
    time_low: float | None
    time_high: float | None
    loss: float
    loss_low: float | None
    loss_high: float | None
    speedup: float
    on_front: bool


class Step(_Result):
    """One step that all runs timed."""

    phase: Phase
    batch: int
    num_tokens: int
    places: tuple[Place, ...]


class Comparison(_Result):
    """Several runs; `time_in` and `loss_in` say what the places' numbers are, `notes` why they aren't absolute."""

    format: Literal["hlap-export/comparison/1"] = "hlap-export/comparison/1"
    time_in: Literal["ms", "dense"]
    loss_in: Literal["perplexity", "increase_ratio"]
    entries: tuple[Entry, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]


def compare(runs: Sequence[Path]) -> Comparison:
    """Put runs into one table.

    Args:
        runs: folders of finished runs; one alone is compared with its dense engine.

    Raises:
        ArtefactError: a folder isn't a finished run, or the runs have no length or no held-out text in common.
    """
    found = [_Run(name=name, summary=read_summary(run)) for name, run in zip(_names(runs), runs, strict=True)]
    for run in found:
        if run.held_out is None:
            raise ArtefactError(
                where=run.name,
                expected="a run that measured perplexity on held-out text",
                found="none",
                fix="run it again with a model folder that has a tokenizer",
            )
    times_differ = _difference(found, _machine, "machine", "times are relative to each run's own dense engine")
    texts_differ = _difference(
        found, _text, "model or text", "perplexities are changes from each run's own dense engine", said=_named_text
    )
    scales = Scales(
        time_in="dense" if times_differ else "ms", loss_in="increase_ratio" if texts_differ else "perplexity"
    )
    engines = _engines(found, scales)
    steps = [step for phase in PHASES for step in _longest_common(phase, engines, scales)]
    if not steps:
        raise ArtefactError(
            where=", ".join(run.name for run in found),
            expected="runs that timed a length in common",
            found="no prompt or context length that all of them timed",
            fix="run them with the same bench section in the recipe",
        )
    noisy = [run.name for run in found if run.summary.has_stars]
    busy = [run.name for run in found if run.summary.disturbed]
    notes = (
        times_differ,
        texts_differ,
        f"times of {', '.join(noisy)} spread widely" if noisy else None,
        f"the machine was busy while it timed {', '.join(busy)}" if busy else None,
    )
    return Comparison(
        time_in=scales.time_in,
        loss_in=scales.loss_in,
        entries=tuple(engine.entry for engine in engines),
        steps=tuple(steps),
        notes=tuple(note for note in notes if note),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scales:
    """Whether numbers are absolute or each run's own, as `Comparison` says it."""

    time_in: Literal["ms", "dense"]
    loss_in: Literal["perplexity", "increase_ratio"]

    @property
    def are_relative(self) -> bool:
        return self.time_in == "dense" and self.loss_in == "increase_ratio"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    name: str
    summary: Summary

    def digest(self, name: str) -> str:
        """Of what the engines were verified with: "model" or "text"."""
        digests = [origin.made_from.get(name, "") for origin in self.summary.origins if origin.name == VERIFY]
        return digests[0].removeprefix(FILE_DIGEST) if digests else ""

    @property
    def held_out(self) -> Perplexity | None:
        return next((row for row in self.summary.perplexities if row.measured_on == "held-out"), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Engine:
    entry: Entry
    run: _Run

    def place(self, phase: Phase, batch: int, num_tokens: int, scales: Scales) -> Place:
        """Where it stands; not on the front before it is compared."""
        row = next(row for row in self.run.summary.latency if _point(row) == (phase, batch, num_tokens))
        low, time, high = self._time(row, scales)
        loss_low, loss, loss_high = self._loss(scales)
        return Place(
            number=self.entry.number,
            time=time,
            time_low=low,
            time_high=high,
            loss=loss,
            loss_low=loss_low,
            loss_high=loss_high,
            speedup=1.0 if self.entry.kind == "dense" else row.speedup,
            on_front=False,
        )

    def _time(self, row: Latency, scales: Scales) -> tuple[float | None, float, float | None]:
        timing = row.dense if self.entry.kind == "dense" else row.pruned
        if scales.time_in == "ms":
            return timing.p50_low_ms, timing.p50_ms, timing.p50_high_ms
        if self.entry.kind == "dense":
            return None, 1.0, None
        return 1 / row.speedup_high, 1 / row.speedup, 1 / row.speedup_low

    def _loss(self, scales: Scales) -> tuple[float | None, float, float | None]:
        """The interval is that of the change: both engines read the same windows."""
        row = self.run.held_out
        assert row is not None, "compare refuses runs without it"
        if self.entry.kind == "dense":
            return None, row.dense if scales.loss_in == "perplexity" else 0.0, None
        if scales.loss_in == "increase_ratio":
            return row.increase_ratio_low, row.increase_ratio, row.increase_ratio_high
        ends = (row.increase_ratio_low, row.increase_ratio_high)
        low, high = (None if end is None else row.dense * (1 + end) for end in ends)
        return low, row.pruned, high


def _names(runs: Sequence[Path]) -> list[str]:
    """Each run by its folder's name, or by its whole path where two have the same."""
    short = [run.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]


def _difference(
    runs: list[_Run],
    key: Callable[[_Run], tuple[str, ...]],
    what: str,
    consequence: str,
    *,
    said: Callable[[_Run], tuple[str, ...]] | None = None,
) -> str | None:
    """Why the runs' numbers can't be taken as they are; None where they can. `said`: the key for people."""
    first, *others = runs
    for run in others:
        if key(run) != key(first):
            ours, theirs = (", ".join((said or key)(each)) for each in (run, first))
            return f"{run.name} and {first.name} differ in {what} ({ours}; {theirs}): {consequence}"
    return None


def _machine(run: _Run) -> tuple[str, ...]:
    machine = run.summary.machine
    return (
        str(machine.get("cpu")),
        wording.in_threads(run.summary.threads),
        str(run.summary.conditions.get("gpus", "no GPU")),
    )


def _text(run: _Run) -> tuple[str, ...]:
    """Which model read which windows of which text, by digests: names of folders and files say little."""
    assert run.held_out is not None, "compare refuses runs without it"
    text = run.held_out.text
    return run.digest("model"), run.digest("text"), str(text.num_windows), str(text.window_length)


def _named_text(run: _Run) -> tuple[str, ...]:
    assert run.held_out is not None, "compare refuses runs without it"
    digests = (run.digest(name)[:SHORT_DIGEST] for name in ("model", "text"))
    names = (run.summary.model, wording.of_text(run.held_out.text))
    return tuple(f"{name} {digest}".rstrip() for name, digest in zip(names, digests, strict=True))


def _engines(runs: list[_Run], scales: Scales) -> list[_Engine]:
    """Dense engines first, equal ones once: as the first run that has it timed it."""
    dense: dict[tuple[str, ...], _Run] = {}
    for run in runs:
        summary = run.summary
        key = () if scales.are_relative else (run.digest("model"), summary.engine, summary.flavour, summary.dtype)
        dense.setdefault(key, run)
    kinds: list[tuple[Kind, _Run]] = [*(("dense", run) for run in dense.values()), *(("pruned", run) for run in runs)]
    return [_Engine(entry=_entry(number, kind, run), run=run) for number, (kind, run) in enumerate(kinds, start=1)]


def _entry(number: int, kind: Kind, run: _Run) -> Entry:
    summary, row, is_dense = run.summary, run.held_out, kind == "dense"
    assert row is not None, "compare refuses runs without it"
    sizes = {size.name: size.dense if is_dense else size.pruned for size in summary.sizes}
    return Entry(
        number=number,
        run=run.name,
        kind=kind,
        model=summary.model,
        method=summary.method,
        engine=summary.engine,
        flavour=summary.flavour,
        dtype=summary.dtype,
        num_changed_layers=0 if is_dense else len(summary.pruned_layers),
        num_layers=len(summary.layers),
        perplexity=row.dense if is_dense else row.pruned,
        increase_ratio=0.0 if is_dense else row.increase_ratio,
        kv_bytes_per_token=sizes[KV_CACHE],
        engine_file_bytes=sizes[ENGINE_ON_DISK],
        passed=is_dense or summary.passed,  # the checks are of the pruned engine
    )


def _point(row: Latency) -> tuple[Phase, int, int]:
    return row.phase, row.batch, row.num_tokens


def _longest_common(phase: Phase, engines: list[_Engine], scales: Scales) -> list[Step]:
    """The longest length of a phase that all runs timed, at the smallest batch of it."""
    timed = [{_point(row) for row in engine.run.summary.latency if row.phase == phase} for engine in engines]
    common = set[tuple[Phase, int, int]].intersection(*timed)
    if not common:
        return []
    _, batch, num_tokens = max(common, key=lambda point: (point[2], -point[1]))
    places = [engine.place(phase, batch, num_tokens, scales) for engine in engines]
    front = pareto_front(
        [
            (place.time, place.loss) if engine.entry.passed else None
            for engine, place in zip(engines, places, strict=True)
        ]
    )
    marked = tuple(place.model_copy(update={"on_front": index in front}) for index, place in enumerate(places))
    return [Step(phase=phase, batch=batch, num_tokens=num_tokens, places=marked)]


def pareto_front(points: Sequence[tuple[float, float] | None]) -> set[int]:
    """Indices of the points that no other is at least as good as in both numbers, and better in one; lower is better.

    None is a point that doesn't count.
    """
    return {
        index
        for index, point in enumerate(points)
        if point is not None
        and not any(
            other is not None and other != point and other[0] <= point[0] and other[1] <= point[1] for other in points
        )
    }
