"""Several tensors computed from one in a single pass over its rows: what quantisation needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hlap_export.weights.streamed import StreamedRows, StreamedTensor, streamed

Compute = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One of the tensors that are computed together."""

    name: str
    dtype: ir.DataType
    shape: tuple[int, ...]


def derived(tensor: ir.TensorProtocol | None, compute: Compute, parts: Sequence[Part]) -> tuple[StreamedTensor, ...]:
    """Tensors that `compute` makes of one tensor's rows, all of them at once, while the file is written.

    A pass that quantises W [out, in], one scale per block of 32 inputs, reads the matrix as torch keeps it and
    registers what comes of it, in one go, so that the parts lie beside each other in the file:

        w = transposed(matmul.inputs[1].const_value)  # [out, in] of the MatMul's [in, out]
        packed, scales = derived(w, quantise_rows, [
            Part(name=f"{name}.packed", dtype=ir.DataType.UINT8, shape=(out, blocks, 16)),
            Part(name=f"{name}.scales", dtype=ir.DataType.FLOAT, shape=(out, blocks)),
        ])

    Args:
        tensor: the source.
        compute: of some rows [n, ...] in the source's dtype, an array for each part: the part's rows that belong to
            them. The arrays of successive calls, one after another, are the part.
        parts: what comes out. The first one is the one that is streamed; the others are held until they are written,
            so the largest comes first.
    """
    derivation = _Derivation(streamed(tensor), compute)
    return tuple(_Derived(derivation, index, part) for index, part in enumerate(parts))


class _Derivation:
    """Runs `compute` over the source when one part is asked for, and keeps the others' blocks until they are."""

    def __init__(self, source: StreamedRows, compute: Compute) -> None:
        self._source, self._compute = source, compute
        self._held: dict[int, list[np.ndarray]] = {}

    def blocks(self, index: int) -> Iterator[np.ndarray]:
        if index in self._held:
            yield from self._held.pop(index)
            return
        held: dict[int, list[np.ndarray]] = {}
        for start, stop in self._source.row_ranges():
            for other, block in enumerate(self._compute(self._source.rows(start, stop))):
                if other == index:
                    yield block
                else:
                    held.setdefault(other, []).append(block)
        self._held = held


class _Derived(StreamedTensor):
    """One part of a derivation."""

    def __init__(self, derivation: _Derivation, index: int, part: Part) -> None:
        super().__init__(part.dtype, part.shape, part.name)
        self._derivation, self._index, self._part = derivation, index, part

    def blocks(self) -> Iterator[np.ndarray]:
        for block in self._derivation.blocks(self._index):
            yield np.ascontiguousarray(block.astype(self._part.dtype.numpy(), copy=False))
