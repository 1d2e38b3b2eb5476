"""HARP's search (arXiv 2507.01900, Algorithm 1): from the last layer down, the alpha with the lowest perplexity.

    for layer = L-1 ... L-n:
        alpha[layer] = argmin over the grid of PPL(value-only in layer and above, full attention below)

The naive search runs the whole model for each of the 11 n candidates. Here, a candidate re-runs only what its alpha
changes: the layers below keep full attention, so what enters each searched layer is captured once from the dense
model; the layer's attention output Z doesn't depend on alpha, so it is computed once and `h + alpha Z` varies.

The paper releases neither the search nor its grid; every alpha it published is a multiple of 0.1 below 1, so the
grid is 0.0, 0.1, ..., 1.0. Ties go to the smaller alpha: 0 also drops V and O.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hlap_export.artifacts import package_versions
from hlap_export.checkpoint.decoder import LoadedLayer, open_decoder
from hlap_export.checkpoint.layout import ModelLayout, read_config, read_layout
from hlap_export.checkpoint.tensors import open_tensors
from hlap_export.errors import PlanError
from hlap_export.families import Family
from hlap_export.on_progress import OnProgress, Steps, ignore_progress
from hlap_export.plan.calibration import Search, Windows, calibrate, count
from hlap_export.plan.journal import Journal
from hlap_export.plan.pruning_plan import (
    AlphaScore,
    LayerSearch,
    PruningPlan,
    SearchRecord,
    dense_plan,
    plan_of_alphas,
)
from hlap_export.plan.states import StateFiles
from hlap_export.plan.value_only import attention_update, mlp_half, value_only

ALPHA_GRID = tuple(step / 10 for step in range(11))


def default_num_layers(layout: ModelLayout) -> int:
    """A quarter of the layers: what the paper prunes of Llama-3.1-8B and Mistral-7B (8 of 32)."""
    return max(1, layout.num_layers // 4)


def search_harp(
    model: Path,
    windows: Windows,
    *,
    num_layers: int,
    work: Path,
    max_memory: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> PruningPlan:
    """Search the alphas of the last `num_layers` layers.

    Args:
        model: the dense checkpoint; computed in float32.
        windows: calibration tokens.
        num_layers: how many of the last layers lose attention, 1 to L-1.
        work: folder of this search alone, where a killed one left its results and goes on from them.
        max_memory: most bytes of RAM for the whole process; None for what the machine has free.
        on_progress: called with (steps done, steps in all).

    Raises:
        PlanError: the model is pruned already, or `num_layers` is out of range.
        CheckpointError: the model can't be read.
        OutputError: `work` holds something else.
    """
    layout = read_layout(model)
    if not 1 <= num_layers < layout.num_layers:
        raise PlanError(
            where="num_layers",
            expected=f"1 to {layout.num_layers - 1} layers: layer 0 keeps its attention",
            found=str(num_layers),
            fix="prune fewer layers",
        )
    dense_plan(layout)  # refuses a pruned model, whose layers can't be searched
    first_layer = layout.num_layers - num_layers
    search = Search(
        decoder=open_decoder(model, batch=windows.batch, copies=len(ALPHA_GRID) + 1, max_memory=max_memory),
        windows=windows,
        states=StateFiles(work, length=windows.batch.length, hidden_size=layout.hidden_size),
        journal=Journal(work, {**request_of(model, windows), "num_layers": num_layers}),
        steps=Steps(_num_steps(layout, windows, first_layer), on_progress),
    )
    record = _search(search, layout.family, first_layer)
    alphas = {found.layer: found.best.alpha for found in record.layers}
    return plan_of_alphas(layout, alphas, method="harp", search=record)


def _search(search: Search, family: Family, first_layer: int) -> SearchRecord:
    """The dense pass, then each layer from the last one down, then the obvious alternatives."""
    perplexity_dense = calibrate(search, first_layer=first_layer)
    found = list(search_alphas(search, family, first_layer))
    alternatives = [dict.fromkeys((layer.layer for layer in found), alpha) for alpha in (1.0, 0.0)]
    all_ones, all_dropped = _perplexities(search, family, alternatives)
    return SearchRecord(
        text=search.windows.text,
        perplexity_dense=perplexity_dense,
        perplexity_planned=found[-1].best.perplexity,
        perplexity_all_ones=all_ones,
        perplexity_all_dropped=all_dropped,
        layers=tuple(found),
    )


def search_alphas(search: Search, family: Family, first_layer: int) -> Iterator[LayerSearch]:
    """The layers from the last one down to `first_layer`, each searched beside those above it when it is asked for."""
    alphas: dict[int, float] = {}
    for layer in reversed(range(first_layer, search.decoder.num_layers)):
        perplexities = _perplexities(search, family, [{**alphas, layer: alpha} for alpha in ALPHA_GRID])
        scores = zip(ALPHA_GRID, perplexities, strict=True)
        found = LayerSearch(layer=layer, curve=tuple(AlphaScore(alpha=alpha, perplexity=at) for alpha, at in scores))
        alphas[layer] = found.best.alpha
        yield found


@torch.no_grad()
def _perplexities(search: Search, family: Family, candidates: Sequence[Mapping[int, float]]) -> list[float]:
    """Perplexity of each candidate: alphas of the same topmost layers, while those below are dense."""
    journal, num_layers = search.journal, search.decoder.num_layers
    batches = list(search.windows.batches())
    keys = {
        rows.start: f"{[sorted(alphas.items()) for alphas in candidates]}, windows from {rows.start}"
        for rows in batches
    }
    pending = [rows for rows in batches if keys[rows.start] not in journal]
    layers_and_head = num_layers - min(candidates[0]) + 1
    search.steps.advance((count(batches) - count(pending)) * len(candidates) * layers_and_head)
    for chunk in search.chunks(pending, copies=len(candidates) + 1):
        for rows, losses in zip(chunk, _losses_nats(search, family, candidates, chunk), strict=True):
            journal.record(keys[rows.start], losses)
    losses_of_batches = [journal.get(key) for key in keys.values()]
    totals = [math.fsum(losses) for losses in zip(*losses_of_batches, strict=True)]
    return [math.exp(total / search.windows.targets.numel()) for total in totals]


def _losses_nats(
    search: Search, family: Family, candidates: Sequence[Mapping[int, float]], chunk: Sequence[slice]
) -> list[list[float]]:
    """Sum of the tokens' losses, for each batch of the chunk and each candidate."""
    decoder, windows = search.decoder, search.windows
    first, *above = sorted(candidates[0])
    with decoder.layer(first) as layer:
        alphas = [candidate[first] for candidate in candidates]
        states = [_first_layer(search, layer, family, alphas, rows) for rows in chunk]
    search.steps.advance(count(chunk) * len(candidates))
    for index in above:
        with decoder.layer(index) as layer:
            for streams in states:
                for which, candidate in enumerate(candidates):
                    streams[which] = decoder.at_rest(value_only(layer, family, streams[which], candidate[index]))
        search.steps.advance(count(chunk) * len(candidates))
    flat = decoder.head.losses_nats(
        [h_NTD for streams in states for h_NTD in streams],
        [windows.targets[rows] for rows in chunk for _ in candidates],
    )
    search.steps.advance(count(chunk) * len(candidates))
    return [flat[start : start + len(candidates)] for start in range(0, len(flat), len(candidates))]


def _first_layer(
    search: Search, layer: LoadedLayer, family: Family, alphas: Sequence[float], rows: slice
) -> list[torch.Tensor]:
    """The residual stream [N, T, D] after the lowest searched layer for each alpha; `h + alpha Z` alone varies."""
    h_NTD = search.states.read(layer.index, rows).to(layer.device)
    z_NTD = attention_update(layer, family, h_NTD)
    streams = (mlp_half(layer, torch.add(h_NTD, z_NTD, alpha=alpha)) for alpha in alphas)
    return [search.decoder.at_rest(stream) for stream in streams]


def _num_steps(layout: ModelLayout, windows: Windows, first_layer: int) -> int:
    """Windows times layers (the head counts as one) that the search computes."""
    num_layers, num_searched = layout.num_layers, layout.num_layers - first_layer
    searched = sum(len(ALPHA_GRID) * (depth + 1) for depth in range(1, num_searched + 1))
    return len(windows.ids) * (num_layers + 1 + searched + 2 * (num_searched + 1))


def request_of(model: Path, windows: Windows) -> dict[str, Any]:
    """What decides the results. Weights count by their files' size and time of change: reading them takes minutes."""
    shards = {model / shard.name for shard in open_tensors(model).shards}
    return {
        "config": read_config(model),
        "weights": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(shards)},
        "tokens": hashlib.sha256(windows.ids.numpy().tobytes()).hexdigest(),
        "versions": package_versions(),
    }
