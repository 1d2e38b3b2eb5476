"""Tensors that have a shape and a dtype at once, and numbers only while they are written."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

BLOCK_BYTES = 16 * 2**20
"""What is read, converted and written at a time: large enough for a disk, small beside a model."""


class StreamedTensor(ir.TensorProtocol, ABC):
    """A tensor whose numbers come in blocks, in the order of the file.

    It may be the `const_value` of an initializer like any other tensor of onnx_ir. `numpy` and `tobytes` work, but
    hold everything at once; passes use them for vectors alone.

    Args:
        dtype: of the elements; whole bytes (4-bit weights are uint8 here, as their operators read them).
        shape: static.
        name: of the initializer that it is stored as.
    """

    def __init__(self, dtype: ir.DataType, shape: Sequence[int], name: str | None = None) -> None:
        self.name: str | None = name
        self.dtype, self.shape = dtype, ir.Shape(shape)
        self.doc_string: str | None = None
        self.metadata_props: MutableMapping[str, str] = {}
        self.meta: MutableMapping[str, Any] = {}
        self.raw = self

    @property
    def dims(self) -> tuple[int, ...]:
        """The shape as plain numbers."""
        return tuple(self.shape.numpy())

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def nbytes(self) -> int:
        return int(self.size * self.dtype.itemsize)

    @abstractmethod
    def blocks(self) -> Iterator[np.ndarray]:
        """The numbers once, in order: contiguous arrays whose bytes, one after another, are the tensor's."""

    def numpy(self) -> np.ndarray:
        flat = np.empty(self.nbytes, np.uint8)
        offset = 0
        for block in self.blocks():
            flat[offset : offset + block.nbytes] = bytes_of(block)
            offset += block.nbytes
        assert offset == self.nbytes
        return flat.view(self.dtype.numpy()).reshape(self.dims)

    def tobytes(self) -> bytes:
        return b"".join(bytes_of(block).tobytes() for block in self.blocks())

    def tofile(self, file: Any) -> None:
        for block in self.blocks():
            file.write(bytes_of(block).data)

    def __array__(self, dtype: Any = None) -> np.ndarray:
        return self.numpy().astype(dtype or self.dtype.numpy(), copy=False)

    def __dlpack__(self, *, stream: Any = None) -> Any:
        return self.numpy().__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.numpy().__dlpack_device__()

    def __repr__(self) -> str:
        return f"{type(self).__name__}<{self.dtype},{self.shape}>({self.name!r})"


class StreamedRows(StreamedTensor):
    """A streamed tensor of which any rows can be had, in any order: what other tensors are made from."""

    block_bytes = BLOCK_BYTES

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Elements `start` to `stop` along the first axis, of the tensor's dtype: [stop - start, ...]."""

    @property
    def num_rows(self) -> int:
        return self.dims[0] if self.dims else 1

    def row_ranges(self) -> Iterator[tuple[int, int]]:
        """Start and stop of each block, about `block_bytes` long."""
        step = max(1, self.block_bytes * self.num_rows // max(1, self.nbytes))
        for start in range(0, self.num_rows, step):
            yield start, min(start + step, self.num_rows)

    def blocks(self) -> Iterator[np.ndarray]:
        for start, stop in self.row_ranges():
            yield np.ascontiguousarray(self.rows(start, stop))

    def numpy(self) -> np.ndarray:
        return self.rows(0, self.num_rows).reshape(self.dims)


class InMemory(StreamedRows):
    """A tensor that is held already, a folded constant for instance."""

    def __init__(self, tensor: ir.TensorProtocol) -> None:
        self._array = tensor.numpy()
        super().__init__(tensor.dtype, self._array.shape, tensor.name)

    def rows(self, start: int, stop: int) -> np.ndarray:
        return self._array.reshape(self.num_rows, -1)[start:stop].reshape(stop - start, *self.dims[1:])


def streamed(tensor: ir.TensorProtocol | None) -> StreamedRows:
    """An initializer's `const_value` as a tensor with rows; one that is held in memory is wrapped."""
    assert tensor is not None
    return tensor if isinstance(tensor, StreamedRows) else InMemory(tensor)


def bytes_of(array: np.ndarray) -> np.ndarray:
    """The array's memory as one run of bytes, without a copy where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
