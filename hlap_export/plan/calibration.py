"""The calibration pass: the dense model over all windows, once; what enters each high layer is kept on disk.

Work is ordered by what is dear: chunks of windows outside, then layers, then batches. Where every layer is resident a
chunk is one batch, whose residual stream stays in the cache; where layers are loaded from disk, a chunk is as many
batches as memory has room for, so that a load serves them all.

Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from hlap_export.checkpoint.decoder import Batch, Decoder
from hlap_export.on_progress import Steps
from hlap_export.plan.journal import Journal
from hlap_export.plan.pruning_plan import TextWindows
from hlap_export.plan.states import StateFiles

# Work is done in pieces that stay in a core's cache: larger ones are slower.
TOKENS_AT_ONCE = 1024

CHECKPOINT = "dense, chunk under way"


@dataclass(frozen=True, kw_only=True, slots=True)
class Windows:
    """Calibration windows as inputs and targets.

    Attributes:
        ids: tokens, [N, T + 1] int64; the last of each window is only predicted.
        text: what they are taken from, for the record.
    """

    ids: torch.Tensor
    text: TextWindows

    @property
    def inputs(self) -> torch.Tensor:
        """The tokens that are read, [N, T]."""
        return self.ids[:, :-1]

    @property
    def targets(self) -> torch.Tensor:
        """The tokens to predict, [N, T]."""
        return self.ids[:, 1:]

    @property
    def batch(self) -> Batch:
        """The largest batch."""
        first = next(self.batches())
        return Batch(windows=first.stop, length=self.targets.shape[1])

    def batches(self) -> Iterator[slice]:
        """The windows in batches of about `TOKENS_AT_ONCE` tokens."""
        return batches_of(*self.targets.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What every part of a search works with.

    Attributes:
        decoder: the dense model.
        windows: the calibration windows.
        states: what enters the layers that are needed again.
        journal: the results so far.
        steps: counts one for each window that went through one layer or the head.
    """

    decoder: Decoder
    windows: Windows
    states: StateFiles
    journal: Journal
    steps: Steps

    def chunks(self, batches: Sequence[slice], copies: int) -> Iterator[list[slice]]:
        """The batches in groups that go from layer to layer together, each with `copies` residual streams."""
        size = self.decoder.batches_at_once(self.windows.batch, copies)
        return (list(batches[start : start + size]) for start in range(0, len(batches), size))


def batches_of(num_windows: int, window_length: int) -> Iterator[slice]:
    """Slices over the windows, each of about `TOKENS_AT_ONCE` tokens and at least one window."""
    size = max(1, TOKENS_AT_ONCE // window_length)
    return (slice(start, min(start + size, num_windows)) for start in range(0, num_windows, size))


def count(batches: Sequence[slice]) -> int:
    """Windows in these batches."""
    return sum(rows.stop - rows.start for rows in batches)


@torch.no_grad()
def calibrate(search: Search, *, first_layer: int) -> float:
    """Run the dense model over the windows and keep what enters each layer from `first_layer` up: its perplexity."""
    decoder, journal = search.decoder, search.journal
    batches = list(search.windows.batches())
    pending = [rows for rows in batches if _key(rows) not in journal]
    search.steps.advance((count(batches) - count(pending)) * (decoder.num_layers + 1))
    for chunk, layer in _chunks_to_run(search, pending):
        if layer == 0:
            states = [decoder.at_rest(decoder.embed(search.windows.inputs[rows])) for rows in chunk]
        else:
            states = [search.states.read(layer, rows) for rows in chunk]
            search.steps.advance(layer * count(chunk))
        _run_layers(search, chunk, states, range(layer, decoder.num_layers), first_layer)
        losses = decoder.head.losses_nats(states, [search.windows.targets[rows] for rows in chunk])
        for rows, loss in zip(chunk, losses, strict=True):
            journal.record(_key(rows), loss)
        search.steps.advance(count(chunk))
    total = math.fsum(journal.get(_key(rows)) for rows in batches)
    return math.exp(total / search.windows.targets.numel())


def _chunks_to_run(search: Search, pending: list[slice]) -> Iterator[tuple[list[slice], int]]:
    """Chunks with the layer that they go on from: a killed run's chunk from its last checkpoint, then the others."""
    under_way = search.journal.get(CHECKPOINT)
    if under_way is not None:
        start, stop = under_way["windows"]
        chunk = [rows for rows in pending if start <= rows.start < stop]
        if chunk:
            yield chunk, under_way["layer"]
            pending = [rows for rows in pending if rows not in chunk]
    for chunk in search.chunks(pending, copies=1):
        yield chunk, 0


def _run_layers(
    search: Search, chunk: list[slice], states: list[torch.Tensor], layers: range, first_layer: int
) -> None:
    """Take the chunk's residual streams through the layers, in place, keeping what must be kept."""
    decoder = search.decoder
    for index in layers:
        with decoder.layer(index) as layer:
            for position, h_NTD in enumerate(states):
                states[position] = decoder.at_rest(layer(h_NTD))
        search.steps.advance(count(chunk))
        # A layer that had to be loaded takes longer than keeping what came of it.
        is_checkpoint = decoder.placement.layers[index] == "disk"
        if index + 1 < decoder.num_layers and (is_checkpoint or index + 1 >= first_layer):
            for rows, h_NTD in zip(chunk, states, strict=True):
                search.states.write(index + 1, rows, h_NTD)
        if index + 1 < decoder.num_layers and is_checkpoint:
            value = {"layer": index + 1, "windows": [chunk[0].start, chunk[-1].stop]}
            search.journal.record(CHECKPOINT, value)
            if index < first_layer:
                search.states.drop(index)


def _key(rows: slice) -> str:
    return f"dense, windows from {rows.start}"
