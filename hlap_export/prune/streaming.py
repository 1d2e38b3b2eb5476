"""Turn a dense checkpoint and a plan into a pruned Hugging Face checkpoint, streaming shard by shard.

Peak memory is one layer's attention weights, whatever the model's size: unchanged tensors are copied as bytes, and
each changed tensor is computed when its turn to be written comes, in float64, then stored in its own dtype.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from hlap_export.artifacts import Manifest, folder_digest, write_manifest, written_whole
from hlap_export.checkpoint import remote_code
from hlap_export.checkpoint.layout import ModelLayout, read_config, read_layout
from hlap_export.checkpoint.loading import check_weights
from hlap_export.checkpoint.tensors import INDEX_FILE, CheckpointTensors, Shard, TensorRecord
from hlap_export.fold.edits import Edit, LayerEdits, layer_edits
from hlap_export.on_progress import OnProgress, ignore_progress
from hlap_export.plan.accounting import count_parameters
from hlap_export.plan.pruning_plan import PruningPlan, validate_plan
from hlap_export.prune.card import model_card
from hlap_export.prune.config import pruned_config
from hlap_export.prune.shards import DTYPE_NAMES, DTYPES, Computed, Copied, OutputTensor, TensorReader, write_shard

PLAN_FILE = "plan.json"
CARD_FILE = "README.md"
# Weights in any format, other people's code, and a model card that describes the dense model stay behind.
NOT_COPIED = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".data", ".msgpack", ".h5", ".py"}
NOT_COPIED_NAMES = {"config.json", INDEX_FILE, "pytorch_model.bin.index.json", CARD_FILE, "manifest.json"}


def prune(model: Path, plan: PruningPlan, out: Path, *, on_progress: OnProgress = ignore_progress) -> Manifest:
    """Write the pruned checkpoint: safetensors, config.json with remote code, tokenizer, the plan, a manifest.

    Args:
        model: the dense checkpoint folder.
        plan: a plan made for it.
        out: a new or empty folder.
        on_progress: called with (bytes read, bytes in all) after each shard.

    Raises:
        CheckpointError: the dense checkpoint is unreadable, or config and weights disagree.
        PlanError: the plan is for another model or can't be built.
        OutputError: `out` isn't free, or the disk is full.
    """
    layout = read_layout(model)
    validate_plan(plan, layout)
    tensors = check_weights(model)
    edits = layer_edits(plan, layout)
    with written_whole(out) as folder:
        _write_shards(tensors, edits, folder, on_progress)
        _write_config(model, plan, layout, folder)
        (folder / remote_code.MODELING_FILE).write_text(remote_code.source(layout.family), encoding="utf-8")
        (folder / PLAN_FILE).write_text(plan.to_json(), encoding="utf-8")
        (folder / CARD_FILE).write_text(model_card(plan, layout), encoding="utf-8")
        _copy_companions(model, folder)
        return write_manifest(
            folder,
            kind="checkpoint",
            parameters={"plan": plan.model_dump(mode="json", exclude={"search"})},
            inputs={"model": folder_digest(model)},
            facts={"parameters": count_parameters(layout, plan).as_facts()},
        )


def _copy_companions(model: Path, out: Path) -> None:
    """Copy what belongs to a model besides weights and config: tokenizer, generation config, licence."""
    for path in sorted(model.iterdir()):
        is_companion = path.is_file() and path.suffix not in NOT_COPIED and path.name not in NOT_COPIED_NAMES
        if is_companion and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


def _write_config(model: Path, plan: PruningPlan, layout: ModelLayout, out: Path) -> None:
    config = pruned_config(read_config(model), plan, layout)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _write_shards(
    tensors: CheckpointTensors, edits: tuple[LayerEdits, ...], out: Path, on_progress: OnProgress
) -> None:
    reader = TensorReader(tensors)
    weight_map: dict[str, str] = {}
    total = sum(record.size_bytes for record in tensors.by_name.values())
    read = written = 0
    for shard in tensors.shards:
        outputs = [output for record in shard.tensors for output in _outputs_of(record, shard, tensors, edits, reader)]
        if outputs:  # a shard may have held nothing but queries and keys
            write_shard(out / shard.name, outputs, shard.metadata)
        weight_map |= {output.name: shard.name for output in outputs}
        written += sum(output.size_bytes for output in outputs)
        read += sum(record.size_bytes for record in shard.tensors)
        on_progress(read, total)
    if len(tensors.shards) > 1:
        index = {"metadata": {"total_size": written}, "weight_map": dict(sorted(weight_map.items()))}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _outputs_of(
    record: TensorRecord,
    shard: Shard,
    tensors: CheckpointTensors,
    edits: tuple[LayerEdits, ...],
    reader: TensorReader,
) -> list[OutputTensor]:
    """What one dense tensor becomes: nothing, itself, its edited form, and any new bias beside it."""
    layer = _layer_of(record.name, edits)
    if layer is None or layer.removes(record.name):
        return [] if layer else [_copied(record, shard, tensors.folder)]
    outputs: list[OutputTensor] = []
    if edit := layer.edits.get(record.name):
        outputs.append(_computed(record.name, record.dtype, edit, reader))
    else:
        outputs.append(_copied(record, shard, tensors.folder))
    new_bias = record.name.removesuffix("weight") + "bias"
    if new_bias in layer.edits and new_bias not in tensors.by_name:
        outputs.append(_computed(new_bias, record.dtype, layer.edits[new_bias], reader))
    return outputs


def _layer_of(name: str, edits: tuple[LayerEdits, ...]) -> LayerEdits | None:
    """The edits of the layer that a tensor `model.layers.{i}...` belongs to; None for embeddings, head and norm."""
    parts = name.split(".")
    return edits[int(parts[2])] if parts[:2] == ["model", "layers"] else None


def _copied(record: TensorRecord, shard: Shard, folder: Path) -> OutputTensor:
    source = Copied(
        source=folder / shard.name, start=shard.data_start + record.data_offsets[0], size_bytes=record.size_bytes
    )
    return OutputTensor(
        name=record.name, dtype=record.dtype, shape=record.shape, size_bytes=record.size_bytes, data=source
    )


def _computed(name: str, dtype_name: str, edit: Edit, reader: TensorReader) -> OutputTensor:
    dtype: torch.dtype = DTYPES[dtype_name]
    shape = tuple(edit(reader.meta).shape)
    return OutputTensor(
        name=name,
        dtype=DTYPE_NAMES[dtype],
        shape=shape,
        size_bytes=torch.Size(shape).numel() * dtype.itemsize,
        data=Computed(compute=lambda: edit(reader), dtype=dtype),
    )
