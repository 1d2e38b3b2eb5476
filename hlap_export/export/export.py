"""The export stage: a checkpoint folder becomes a folder with an ONNX model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from hlap_export.artifacts import Manifest, require_free, write_manifest, written_whole
from hlap_export.checkpoint import ModelLayout, check_weights, read_layout
from hlap_export.checkpoint.digest import model_digest
from hlap_export.errors import ExportError
from hlap_export.export.flavours import flavour_of
from hlap_export.export.io_contract import IOContract, io_contract, kv_bytes_per_token
from hlap_export.export.precision import BYTES_PER_ELEMENT, Precision, precision_of
from hlap_export.on_progress import OnProgress, ignore_progress

if TYPE_CHECKING:
    import onnx_ir as ir

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
LAYOUT_KEY = "hlap.layout"
"""Model metadata: the layout as JSON, so that the file explains itself without its folder."""

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")

COPIED = ("config.json", "generation_config.json", "chat_template.jinja", "chat_template.json", "added_tokens.json")
"""Beside tokenizer* and special_tokens_map.json, what a runtime reads next to the model."""


def export(
    checkpoint: Path,
    out: Path,
    *,
    flavour: str = "portable",
    dtype: str = "float32",
    block_size: int | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Manifest:
    """Write the checkpoint as ONNX: model.onnx, model.onnx.data, config and tokenizer files, manifest.json.

    The same request gives the same bytes, in any process and any folder. Memory stays at a few blocks of a tensor: the
    graph is traced without weights, and they are read, converted and written in one pass.

    Args:
        checkpoint: a Hugging Face folder, dense or pruned.
        out: a new or empty folder.
        flavour: which operators the graph uses; `flavours.FLAVOURS` lists what is available.
        dtype: of weights, activations and KV cache; int8 and int4 are of weights alone. Logits are always float32.
        block_size: of int8 and int4: so many weights share a scale. None takes `precision.DEFAULT_BLOCK_SIZE`.
        on_progress: is told bytes of weights, written and in all.

    Raises:
        ExportError: a flavour, dtype or block size that isn't available.
        CheckpointError: the checkpoint is unreadable, unsupported or inconsistent.
        OutputError: `out` can't be written.
    """
    from hlap_export.export.external_data import write_model

    chosen, precision = flavour_of(flavour, dtype), precision_of(dtype, block_size)
    require_free(out)
    layout = read_layout(checkpoint)
    _require_static_rope(layout, checkpoint)
    contract = io_contract(layout, precision.activations)
    digest = _in_background(model_digest, checkpoint)  # reads a foreign checkpoint once: tracing leaves a core for it
    model, num_parameters = _traced(checkpoint, layout, contract, precision.activations)
    for declared in chosen.passes(layout, precision):
        declared(model)
    model.metadata_props[LAYOUT_KEY] = json.dumps(layout_facts(layout), sort_keys=True)
    facts = _facts(model, layout, precision, num_parameters)
    with written_whole(out) as folder:
        data = write_model(model, folder / MODEL_FILE, folder / DATA_FILE, on_progress)
        _copy_companions(checkpoint, folder)
        return write_manifest(
            folder,
            kind="onnx",
            parameters={
                "flavour": flavour,
                "dtype": dtype,
                **({"block_size": precision.block_size} if precision.block_size else {}),
                "opset": model.opset_imports[""],
            },
            inputs={"checkpoint": digest.result()},
            facts=facts,
            known={DATA_FILE: data},
        )


def layout_facts(layout: ModelLayout) -> dict[str, Any]:
    """The layout as JSON values: what a consumer of the graph needs to size its KV cache."""
    return {
        "model_type": layout.family.model_type,
        "num_layers": layout.num_layers,
        "hidden_size": layout.hidden_size,
        "vocab_size": layout.vocab_size,
        "head_dim": layout.head_dim,
        "max_positions": layout.max_positions,
        "sliding_window": layout.sliding_window,
        "layers": [
            {"kind": layer.kind, "num_heads": layer.num_heads, "num_kv_heads": layer.num_kv_heads}
            for layer in layout.layers
        ],
    }


def _require_static_rope(layout: ModelLayout, checkpoint: Path) -> None:
    """Refuse rotary frequencies that depend on the length: a trace would freeze those of its own short inputs."""
    if layout.rope_type in LENGTH_DEPENDENT_ROPE:
        raise ExportError(
            where=str(checkpoint / "config.json"),
            expected="rotary frequencies that don't depend on the sequence length (default, linear, llama3, yarn)",
            found=f"rope_type {layout.rope_type!r}",
            fix="choose another rope_type in config.json; below its original context length, default is the same",
        )


def _traced(checkpoint: Path, layout: ModelLayout, contract: IOContract, dtype: str) -> tuple[ir.Model, int]:
    """The unoptimised graph, its weights still on disk, and the number of parameters (tied ones counted once)."""
    import torch

    from hlap_export.export.onnx_from_torch import onnx_from_torch
    from hlap_export.export.weightless import attach_weights, weightless_model

    tensors = check_weights(checkpoint)
    model = weightless_model(checkpoint, getattr(torch, dtype))
    traced = onnx_from_torch(model, layout, contract)
    attach_weights(traced, tensors)
    return traced, sum(parameter.numel() for parameter in model.parameters())


def _facts(model: ir.Model, layout: ModelLayout, precision: Precision, num_parameters: int) -> dict[str, Any]:
    from hlap_export.export.structure import op_counts
    from hlap_export.passes.attention_operator import FORMS
    from hlap_export.passes.quantise_weights import quantisation

    return {
        "layout": layout_facts(layout),
        "op_counts": op_counts(model),
        "num_parameters": num_parameters,
        "weight_bytes": sum(
            value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value
        ),
        "kv_bytes_per_token": kv_bytes_per_token(layout, BYTES_PER_ELEMENT[precision.activations]),
        **({"quantisation": quantisation(model)} if precision.weight_bits else {}),
        **({"attention": json.loads(model.metadata_props[FORMS])} if FORMS in model.metadata_props else {}),
    }


def _in_background(function: Callable[[Path], str], path: Path) -> Future[str]:
    """Call a function on a thread that nobody waits for if the export fails."""
    result = Future[str]()

    def call() -> None:
        try:
            result.set_result(function(path))
        except BaseException as error:
            result.set_exception(error)

    Thread(target=call, name="digest", daemon=True).start()
    return result


def _copy_companions(checkpoint: Path, folder: Path) -> None:
    """Copy config and tokenizer files as they are; the remote code of a pruned checkpoint stays behind."""
    for path in sorted(checkpoint.iterdir()):
        wanted = path.name in COPIED or path.name.startswith(("tokenizer", "special_tokens_map", "vocab", "merges"))
        if path.is_file() and wanted:
            shutil.copyfile(path, folder / path.name)
