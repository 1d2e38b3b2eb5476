"""What the steps of a whole run need, told before the first; the pruned model counts as the dense one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from hlap_export.budget.files import build_needs, bundle_needs, export_needs, prune_needs
from hlap_export.budget.needs import Needs
from hlap_export.budget.running import bench_needs, verify_needs
from hlap_export.budget.searching import SearchSize, search_needs, walk_needs
from hlap_export.counting import Model
from hlap_export.plan.fit_memory import fitting_bytes
from hlap_export.plan.pruning_plan import dense_plan
from hlap_export.recipe import PlanSection, Recipe


def plan_needs(dense: Model, asked: PlanSection, *, room_bytes: int | None) -> Needs:
    """The needs of a search by the method that is asked for."""
    size = SearchSize.of(dense.layout, asked.num_layers, asked.windows, asked.window_length)
    targets = asked.method_options(Path()).targets
    if asked.method == "harp" and not targets.are_given:
        return search_needs(dense, size, room_bytes=room_bytes)
    fits = fitting_bytes(dense.layout, asked.method, asked.method_options(Path()), asked.window_length)
    return walk_needs(dense, size, room_bytes=room_bytes, fit_bytes=fits)


def run_needs(dense: Model, asked: Recipe, *, room_bytes: int | None) -> tuple[Needs, ...]:
    """The needs of every step, in order; what is exported and built twice is listed twice.

    Args:
        dense: the model to prune.
        asked: the effective recipe.
        room_bytes: memory that the search and the reference may use; None where that isn't known.
    """
    layout = dense.layout
    export = asked.export
    graph = Model(layout=layout, dtype=export.dtype, flavour=export.flavour, block_size=export.block_size)
    steps: list[Needs] = []
    if asked.plan.file is None and asked.plan.method != "fixed":
        steps.append(plan_needs(dense, asked.plan, room_bytes=room_bytes))
    steps.append(prune_needs(dense, dense_plan(layout)))
    exported = export_needs(dense, export.dtype, flavour=export.flavour, block_size=export.block_size)
    for make in (exported, build_needs(graph)):
        steps += [replace(make, step=f"{make.step} {name}") for name in ("dense", "pruned")]
    lengths = {"prompt_lengths": asked.bench.prompt_lengths, "context_lengths": asked.bench.context_lengths}
    return (
        *steps,
        verify_needs(
            dense,
            graph,
            windows=asked.verify.windows,
            window_length=asked.verify.window_length,
            room_bytes=room_bytes,
        ),
        bench_needs(graph, graph, **lengths, batches=asked.bench.batches),
        *([bundle_needs(graph)] if asked.bundle else []),
    )
