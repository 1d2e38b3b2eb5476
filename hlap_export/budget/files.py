"""What the steps need that turn files into files: prune, export, build. They stream, so memory hardly grows."""

from __future__ import annotations

import math
from dataclasses import replace

from hlap_export.budget.engines import loaded_weights
from hlap_export.budget.needs import Needs, Term, Work
from hlap_export.counting import (
    BYTES,
    QUANTISED_BYTES,
    Model,
    embedding,
    layer_matrices,
    num_weights,
    rotary_table_bytes,
    stored_bytes,
)
from hlap_export.plan.accounting import count_parameters
from hlap_export.plan.pruning_plan import PruningPlan, ValueOnly
from hlap_export.plan.side_file import fitted_shapes
from hlap_export.report.wording import in_bytes

MIB = 2**20

# Peak memory of the steps on models with next to no weights, measured on Linux.
PRUNING = Term(num_bytes=360 * MIB, why="Python, torch and transformers")
EXPORTING = Term(num_bytes=540 * MIB, why="Python, torch and onnxscript")
BUILDING = Term(num_bytes=390 * MIB, why="Python, torch and ONNX Runtime")

TRACE_BYTES_PER_LAYER = 2.5 * MIB
TRACE_SECONDS = 9.0
TRACE_SECONDS_PER_LAYER = 0.8
FOLD_BYTES_PER_VALUE = 3 * 8 + 2  # in float64 while it is summed, scaled and converted, and as stored
COPY_BUFFERS_BYTES = 64 * MIB
STRIP_BYTES = 128 * MIB
TABULATING_RATIO = 3.3  # measured: tables of rotary angles, and what they are computed from, all in float32
QUANTISED_PER_SECOND = 50e6  # values, by one core


def prune_needs(dense: Model, plan: PruningPlan) -> Needs:
    """Prune: every tensor is copied in chunks; one o_proj at a time is folded in float64."""
    layout, itemsize = dense.layout, BYTES[dense.dtype]
    before = stored_bytes(dense)
    removed = int(count_parameters(layout, plan).removed_folded * itemsize)
    memory = [PRUNING, Term(num_bytes=COPY_BUFFERS_BYTES, why="copy buffers")]
    if any(isinstance(attention, ValueOnly) for attention in plan.attention):
        inputs, folded = layout.num_heads * layout.head_dim, layout.num_kv_heads * layout.head_dim
        fold = layout.hidden_size * (inputs * itemsize + folded * FOLD_BYTES_PER_VALUE)
        memory.append(
            Term(num_bytes=fold, why=f"one o_proj {layout.hidden_size} × {inputs}, folded to {folded} in float64")
        )
    if plan.fits:
        largest = max(math.prod(shape) for shape in fitted_shapes(plan, layout).values())
        memory.append(
            Term(
                num_bytes=int(largest * (BYTES["float32"] + itemsize)), why="one fitted weight, as fitted and as stored"
            )
        )
    return Needs(
        step="prune",
        memory=tuple(memory),
        disk=(Term(num_bytes=before - removed, why=f"weights ({in_bytes(before)} less {in_bytes(removed)})"),),
        work=(
            Work(kind="read", amount=before, why=f"read {in_bytes(before)}"),
            Work(kind="write", amount=before - removed, why=f"write {in_bytes(before - removed)}"),
            Work(kind="wait", amount=6.0, why="start"),
        ),
        advice="prune on a machine with more memory, or raise --max-memory",
    )


def export_needs(model: Model, dtype: str, *, flavour: str = "portable", block_size: int | None = None) -> Needs:
    """Export: the graph is traced without weights, which are then converted block by block as they are written.

    Args:
        model: the checkpoint's.
        dtype: of the export's weights.
        flavour: of the export.
        block_size: of int8 and int4; None for the default.
    """
    graph = Model(layout=model.layout, dtype=dtype, flavour=flavour, block_size=block_size)
    layout, itemsize = model.layout, BYTES["float32"] if dtype in QUANTISED_BYTES else BYTES[dtype]
    before, after = stored_bytes(model), stored_bytes(graph)
    turned = [*layer_matrices(layout, layout.layers[0]), *([] if layout.tied_embeddings else [embedding(layout)])]
    largest = max(matrix.rows * matrix.columns for matrix in turned) * itemsize
    work = [
        Work(
            kind="wait",
            amount=TRACE_SECONDS + TRACE_SECONDS_PER_LAYER * layout.num_layers,
            why=f"trace {layout.num_layers} layers",
        ),
        Work(kind="read", amount=before, why=f"read {in_bytes(before)}"),
        Work(kind="write", amount=after, why=f"write {in_bytes(after)}"),
    ]
    if dtype in QUANTISED_BYTES:
        values = num_weights(layout)
        work.append(
            Work(kind="wait", amount=values / QUANTISED_PER_SECOND, why=f"quantise {values / 1e9:.1f} G values")
        )
    return Needs(
        step="export",
        memory=(
            EXPORTING,
            Term(num_bytes=TRACE_BYTES_PER_LAYER * layout.num_layers, why=f"the graph of {layout.num_layers} layers"),
            Term(num_bytes=2 * min(largest, STRIP_BYTES), why="blocks of a weight being converted"),
            Term(
                num_bytes=TABULATING_RATIO * rotary_table_bytes(replace(graph, dtype="float32")),
                why=f"rotary angles of {layout.max_positions} positions",
            ),
        ),
        disk=(Term(num_bytes=after, why=f"weights in {dtype}"),),
        work=tuple(work),
        advice="export on a machine with more memory, or raise --max-memory",
    )


def build_needs(model: Model) -> Needs:
    """Build with ONNX Runtime, which loads all weights to optimise the graph, and once more to see that it loads."""
    weights = stored_bytes(model)
    return Needs(
        step="build",
        memory=(BUILDING, *loaded_weights(model, "weights")),
        disk=(Term(num_bytes=weights, why=f"weights in {model.dtype}"),),
        work=(
            Work(kind="read", amount=2 * weights, why=f"read {in_bytes(weights)} twice"),
            Work(kind="hash", amount=2 * weights, why="hash input and output"),
            Work(kind="write", amount=weights, why=f"write {in_bytes(weights)}"),
        ),
        advice="export with --dtype int4 or int8, build on a machine with more memory, or raise --max-memory",
    )


def bundle_needs(model: Model) -> Needs:
    """Bundle: the engine's files are copied, and tried where the serving stack is installed."""
    weights = stored_bytes(model)
    return Needs(
        step="bundle",
        memory=(BUILDING, *loaded_weights(model, "weights")),
        disk=(Term(num_bytes=weights, why=f"weights in {model.dtype}"),),
        work=(
            Work(kind="read", amount=2 * weights, why=f"read {in_bytes(weights)} twice"),
            Work(kind="write", amount=weights, why=f"write {in_bytes(weights)}"),
        ),
        advice="bundle on a machine with more memory, or raise --max-memory",
    )
