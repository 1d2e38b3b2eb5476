"""Where an engine goes wrong: the first part, and in it the first tensor, whose own error is too large.

The check that failed is run once more while the graph hands out the residual stream between layers; each layer of the
checkpoint then computes from the engine's own input to that layer. The first layer that makes something else of it is
looked into the same way, tensor by tensor. Engine and checkpoint are never in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hlap_export.checkpoint import read_layout
from hlap_export.engines import KVCache, TracedSession, tracer_of, usable_cores
from hlap_export.engines.tracing import Tracer
from hlap_export.errors import ArtefactError
from hlap_export.verify.graph_names import biased_by_a_norm, residual_values, tensor_values
from hlap_export.verify.layer_errors import Floats, Parts, error_ratio
from hlap_export.verify.options import VerifyOptions
from hlap_export.verify.parity import CHUNKED, PADDED_DECODE, PADDED_PREFILL, PREFILL, Row, pad_left
from hlap_export.verify.report import Check, Fault, PartError
from hlap_export.verify.tolerances import Tolerance

Ids = NDArray[np.int64]
Trace = list[dict[str, Floats]]
"""For each row the values [T, F] of its tokens, by name."""


class Search:
    """The search for a fault in one engine.

    Args:
        candidate: the engine's folder.
        reference: its checkpoint.
        check: what to run: the name of a logit check, or of another one, for which the first row is decoded.
        rows: that the check runs.
        last: the last position that matters.
        options: threads and memory.
    """

    def __init__(
        self, candidate: Path, reference: Path, check: str, rows: Sequence[Row], last: int, options: VerifyOptions
    ) -> None:
        tracer = tracer_of(candidate)
        assert tracer is not None, "only engines that keep a graph can be looked into"
        self._candidate, self._reference, self._tracer = candidate, reference, tracer
        self._check, self._rows, self._last, self._options = check, rows, last, options
        self._values = tracer.graph_values(candidate)

    def run(self, tolerance: Tolerance) -> Fault:
        """Find the first part whose own error is above its bound, or else the one with the largest."""
        names = residual_values(self._values, read_layout(self._reference))
        trace = self._trace(list(names.values()))
        residual = [{layer: row[name] for layer, name in names.items() if name in row} for row in trace]
        parts = self._parts(trace)
        errors = parts.errors(residual, [row["logits"] for row in trace])
        embedded = parts.embedded()
        del parts
        beyond = [name for name, error in errors.items() if error > tolerance.layer_error_ratio]
        part = beyond[0] if beyond else max(errors, key=lambda name: errors[name])
        tensor = None
        if part.startswith("layer "):
            layer = int(part.removeprefix("layer "))
            inputs = [row.get(layer - 1, start) for row, start in zip(residual, embedded, strict=True)]
            if all(layer - 1 in row for row in residual) or layer == 0:
                tensor = self._first_tensor(layer, inputs, tolerance.tensor_error_ratio)
        return Fault(
            check=self._check,
            part=part,
            error_ratio=errors[part],
            bound=tolerance.layer_error_ratio,
            is_beyond_bound=bool(beyond),
            num_beyond_bound=len(beyond),
            tensor=tensor,
            parts=tuple(PartError(name=name, error_ratio=error) for name, error in errors.items()),
        )

    def _first_tensor(self, layer: int, inputs: Sequence[Floats], bound: float) -> PartError | None:
        """The layer's first tensor beyond the bound, else the worst; None where none has a name in both."""
        names = tensor_values(self._values, layer)
        trace = self._trace(list(set(names.values())))
        expected = self._parts(trace).tensors(layer, inputs, biased_by_a_norm(self._values, names))
        errors: dict[str, float] = {}
        for module in expected[0]:
            found = [row.get(names.get(module, "")) for row in trace]
            pairs = [(ours, row[module]) for ours, row in zip(found, expected, strict=True) if ours is not None]
            if pairs and all(ours.shape == theirs.shape for ours, theirs in pairs):
                errors[module] = max(error_ratio(ours, theirs) for ours, theirs in pairs)
        if not errors:
            return None
        beyond = [module for module, error in errors.items() if error > bound]
        name = beyond[0] if beyond else max(errors, key=lambda module: errors[module])
        return PartError(name=f"model.layers.{layer}.{name}", error_ratio=errors[name])

    def _parts(self, trace: Trace) -> Parts:
        rows = [row.ids[: len(found["logits"])] for row, found in zip(self._rows, trace, strict=True)]
        return Parts(self._reference, rows, self._options.max_memory)

    def _trace(self, names: Sequence[str]) -> Trace:
        with _opened(self._tracer, self._candidate, names, self._options.threads) as session:
            if self._check in (PADDED_PREFILL, PADDED_DECODE):
                return _trace_padded(session, self._rows, self._last)
            row = self._rows[0]
            prompt = [len(part) for part in np.array_split(np.arange(row.prompt_length), 2)]
            sizes = prompt if self._check == CHUNKED else [row.prompt_length]
            num_steps = 0 if self._check in (PREFILL, CHUNKED) else max(0, self._last + 1 - row.prompt_length)
            return [_trace_alone(session, row.ids, [*sizes, *[1] * num_steps])]


def find_fault(
    candidate: Path,
    reference: Path,
    failed: Check,
    rows: Sequence[Row],
    tolerance: Tolerance,
    options: VerifyOptions,
) -> Fault | None:
    """Look for the part that makes a check fail; None where the engine can't be looked into, and nobody asked for it.

    Args:
        candidate: the engine's folder.
        reference: its checkpoint.
        failed: the check.
        rows: that it runs, see `Sequences.of_check`.
        tolerance: the bounds of the engine's dtype.
        options: threads and memory, and whether somebody asked for it.

    Raises:
        ArtefactError: somebody asked to look into an engine that can't be looked into.
    """
    if tracer_of(candidate) is None:
        if not options.bisect:
            return None
        raise ArtefactError(
            where=str(candidate),
            expected="an engine that can be looked into, for --bisect",
            found="one whose compiler left no graph",
            fix="build the same export with --engine onnxruntime, and verify that engine with --bisect",
        )
    last = failed.location.position if failed.location else rows[0].ids.size - 1
    return Search(candidate, reference, failed.name, rows, last, options).run(tolerance)


def _opened(tracer: Tracer, engine: Path, names: Sequence[str], threads: int | None) -> TracedSession:
    return tracer.open_traced(engine, names, threads=threads or usable_cores())


def _trace_alone(session: TracedSession, ids: Ids, sizes: Sequence[int]) -> dict[str, Floats]:
    """The first row's tokens, so many at a time."""
    cache = session.empty_cache(1, sum(sizes))
    steps: Trace = []
    for size in sizes:
        start, stop = cache.length, cache.length + size
        mask, positions = np.ones((1, stop), dtype=np.int64), np.arange(start, stop, dtype=np.int64)[None]
        (values,), cache = session.run(ids[None, start:stop], mask, positions, cache)
        steps.append(values)
    return _joined(steps)


def _trace_padded(session: TracedSession, rows: Sequence[Row], last: int) -> Trace:
    """All rows in one batch, up to the column in which the longest prompt's row has its token `last`."""
    batch, width = pad_left(rows), max(row.prompt_length for row in rows)
    stop_at = max(width, min(batch.ids.shape[1], width + last + 1 - min(row.prompt_length for row in rows)))
    cache: KVCache = session.empty_cache(len(rows), stop_at)
    steps: list[Trace] = []
    for start, stop in [(0, width), *((at, at + 1) for at in range(width, stop_at))]:
        new = (batch.ids[:, start:stop], batch.mask[:, :stop], batch.positions[:, start:stop])
        values, cache = session.run(*new, cache)
        steps.append(values)
    return [_joined([step[index] for step in steps]) for index in range(len(rows))]


def _joined(steps: Sequence[Mapping[str, Floats]]) -> dict[str, Floats]:
    """One row's values, step after step."""
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
