"""Write a model: small tensors in the model file, all others beside it, in one pass over the checkpoint.

Every tensor starts at a multiple of 4096 bytes, so that a runtime can map it instead of reading it. The next block is
read, converted and turned on one thread while the last one is written, and hashed on a third: memory stays at a few
blocks, whatever the size of the model or of its largest matrix. The 8B shape in bfloat16 (16 GB) took 63 s to write and
40 s to trace, with a peak of 0.9 GB, where `cp` took 78 s (2 busy cores).

Why the checkpoint's own safetensors aren't referred to, though weights would then exist once on disk: torch keeps
matrices as [out, in], and a runtime that finds `MatMul(x, Transpose(W))` turns them whenever it loads. Measured with
ONNX Runtime 1.32 and 1.1 GB of float32 weights: 5.0 s and 1.5 GB of memory of its own, against 3.0 s and 1.06 GB for
this file; without prepacking, this file is mapped as it is, in 0.2 s and 7 MB, the other still turned in 4 s. Beyond
that, it could only serve the checkpoint's dtype and matrices that no pass has changed, and onnx 1.23 refuses to read a
data file that lies outside the folder or is a symbolic or hard link, so that there would be a copy anyway.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from hlap_export.digests import FileRecord, HashingWriter
from hlap_export.on_progress import OnProgress
from hlap_export.weights import StreamedTensor, streamed
from hlap_export.weights.ahead import one_ahead
from hlap_export.weights.streamed import bytes_of

ALIGNMENT_BYTES = 4096
"""A page: where the ONNX specification wants tensors to start, for mapping."""

INLINE_BYTES = 1024
"""Tensors up to this size stay in the model file: scalars and axes, so that a graph can be read without its weights."""

WRITE_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class _Placed:
    """An initializer, its numbers to be, and where in the file they will lie."""

    value: ir.Value
    tensor: StreamedTensor
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.tensor.nbytes


def write_model(model: ir.Model, path: Path, data: Path, on_progress: OnProgress) -> FileRecord:
    """Write `data`, let the model's large tensors refer to it, and write `path` beside it.

    Args:
        model: its initializers may be streamed tensors; afterwards the large ones are references to the file.
        path: the model file to write.
        data: the file for the weights, in the same folder.
        on_progress: is told bytes of `data`, written and in all.

    Returns:
        What `data` consists of; it was hashed while it was written.
    """
    placed = _placed(model.graph)
    with HashingWriter(data) as file:
        for entry, block in one_ahead(_blocks(placed)):
            if file.size_bytes < entry.offset:
                file.write(bytes(entry.offset - file.size_bytes))
            content = bytes_of(block)
            for start in range(0, len(content), WRITE_BYTES):
                file.write(content[start : start + WRITE_BYTES].data)
            on_progress(file.size_bytes, placed[-1].end)
    assert file.size_bytes == (placed[-1].end if placed else 0)
    for entry in placed:
        entry.value.const_value = _reference(entry, data.name)
    cast(Any, ir).save(model, path)
    return file.record


def _placed(graph: ir.Graph) -> Sequence[_Placed]:
    """The initializers that go to the file, in the order of the graph."""
    placed: list[_Placed] = []
    end = 0
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= INLINE_BYTES:
            continue
        offset = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        held = not isinstance(tensor, StreamedTensor)
        placed.append(_Placed(value=value, tensor=streamed(tensor) if held else tensor, offset=offset))
        end = placed[-1].end
    return placed


def _blocks(placed: Sequence[_Placed]) -> Iterator[tuple[_Placed, np.ndarray]]:
    for entry in placed:
        size = 0
        for block in entry.tensor.blocks():
            size += block.nbytes
            yield entry, block
        assert size == entry.tensor.nbytes, f"{entry.value.name}: {size} bytes instead of {entry.tensor.nbytes}"


def _reference(entry: _Placed, location: str) -> ir.ExternalTensor:
    assert entry.value.name is not None
    return ir.ExternalTensor(
        location,
        entry.offset,
        entry.tensor.nbytes,
        entry.tensor.dtype,
        shape=ir.Shape(entry.tensor.dims),
        name=entry.value.name,
    )
