"""Write safetensors shards one tensor at a time, and read single tensors back without loading a shard."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from safetensors import safe_open

from hlap_export.checkpoint.tensors import CheckpointTensors
from hlap_export.digests import HashingReader

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes | memoryview, /) -> object: ...


class TensorData(Protocol):
    """The bytes of a tensor, made while they are written."""

    def write(self, file: Sink) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Copied:
    """A tensor taken over byte for byte, never decoded, from a file that is read from front to back."""

    source: HashingReader
    start: int
    size_bytes: int

    def write(self, file: Sink) -> None:
        for chunk in self.source.chunks(self.start, self.size_bytes):
            file.write(chunk)


@dataclass(frozen=True, kw_only=True, slots=True)
class Computed:
    """A tensor computed when its turn to be written comes."""

    compute: Callable[[], torch.Tensor]
    dtype: torch.dtype

    def write(self, file: Sink) -> None:
        tensor = self.compute().to(self.dtype).contiguous()
        file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputTensor:
    """One tensor of an output shard: `dtype` as safetensors names it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    data: TensorData


def write_shard(file: Sink, tensors: Sequence[OutputTensor], metadata: dict[str, str]) -> Iterator[OutputTensor]:
    """Write a safetensors file: 8-byte header length, JSON header padded to 8 bytes, then the data back to back.

    Format: https://huggingface.co/docs/safetensors/index#format

    Yields:
        Each tensor once it is written; a shard takes minutes on a slow disk.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size_bytes],
        }
        offset += tensor.size_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for tensor in tensors:
        tensor.data.write(file)
        yield tensor


class TensorReader:
    """Single tensors of checkpoints and side files by name, memory-mapped."""

    def __init__(self, *sources: CheckpointTensors) -> None:
        self._places = {
            record.name: (source.folder / record.shard, record.shape)
            for source in sources
            for record in source.by_name.values()
        }

    def __call__(self, name: str) -> torch.Tensor:
        opened = cast(Any, safe_open(self._places[name][0], framework="pt"))
        with opened as shard:
            return shard.get_tensor(name)

    def meta(self, name: str) -> torch.Tensor:
        """A stand-in of the tensor's shape without memory."""
        return torch.empty(self._places[name][1], device="meta")
