"""What a plan makes of each shard: its tensors copied, computed or left out, and none of them read yet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hlap_export.checkpoint.shards import DTYPE_NAMES, DTYPES, Computed, Copied, OutputTensor, TensorReader
from hlap_export.checkpoint.tensors import CheckpointTensors, Shard, TensorRecord, require_floating
from hlap_export.digests import HashingReader
from hlap_export.fold.edits import Edit, LayerEdits


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputShard:
    """A shard of the pruned checkpoint, named like the dense one `source` that it is made from."""

    name: str
    source: HashingReader
    metadata: dict[str, str]
    tensors: tuple[OutputTensor, ...]

    @property
    def size_bytes(self) -> int:
        return sum(tensor.size_bytes for tensor in self.tensors)


def output_shards(
    tensors: CheckpointTensors, edits: tuple[LayerEdits, ...], fitted: CheckpointTensors | None = None
) -> tuple[OutputShard, ...]:
    """The shards to write, one for each dense shard, with the dense tensors' order.

    Args:
        tensors: the dense checkpoint.
        edits: of each layer.
        fitted: the side file that the edits of fitted parts read.
    """
    maker = _OutputTensors(tensors, edits, TensorReader(*[tensors, *([fitted] if fitted else [])]))
    return tuple(maker.shard(shard) for shard in tensors.shards)


class _OutputTensors:
    def __init__(self, tensors: CheckpointTensors, edits: tuple[LayerEdits, ...], reader: TensorReader) -> None:
        self._folder = tensors.folder
        self._records = tensors.by_name
        self._edits = edits
        self._reader = reader

    def shard(self, shard: Shard) -> OutputShard:
        source = HashingReader(self._folder / shard.name)
        outputs = tuple(output for record in shard.tensors for output in self._outputs_of(record, shard, source))
        return OutputShard(name=shard.name, source=source, metadata=shard.metadata, tensors=outputs)

    def _outputs_of(self, record: TensorRecord, shard: Shard, source: HashingReader) -> list[OutputTensor]:
        """What one dense tensor becomes: nothing, itself, its edited form, and any new bias beside it."""
        layer = self._layer_of(record.name)
        if layer.removes(record.name):
            return []
        if edit := layer.edits.get(record.name):
            outputs = [self._computed(record.name, record, edit)]
        else:
            outputs = [_copied(record, shard, source)]
        new_bias = record.name.removesuffix("weight") + "bias"
        if new_bias in layer.edits and new_bias not in self._records:
            outputs.append(self._computed(new_bias, record, layer.edits[new_bias]))
        return outputs

    def _layer_of(self, name: str) -> LayerEdits:
        """The edits of the layer that a tensor `model.layers.{i}...` belongs to; none for embeddings, head and norm."""
        parts = name.split(".")
        return self._edits[int(parts[2])] if parts[:2] == ["model", "layers"] else LayerEdits()

    def _computed(self, name: str, record: TensorRecord, edit: Edit) -> OutputTensor:
        """The tensor `name` as an edit makes it, stored like `record`."""
        require_floating(self._folder, record)
        dtype: torch.dtype = DTYPES[record.dtype]
        shape = tuple(edit(self._reader.meta).shape)
        return OutputTensor(
            name=name,
            dtype=DTYPE_NAMES[dtype],
            shape=shape,
            size_bytes=torch.Size(shape).numel() * dtype.itemsize,
            data=Computed(compute=lambda: edit(self._reader), dtype=dtype),
        )


def _copied(record: TensorRecord, shard: Shard, source: HashingReader) -> OutputTensor:
    start = shard.data_start + record.data_offsets[0]
    return OutputTensor(
        name=record.name,
        dtype=record.dtype,
        shape=record.shape,
        size_bytes=record.size_bytes,
        data=Copied(source=source, start=start, size_bytes=record.size_bytes),
    )
