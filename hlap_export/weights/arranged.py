"""Matrices made of other matrices, row by row: transposed, stacked, mapped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import torch

from hlap_export.weights.ahead import one_ahead
from hlap_export.weights.streamed import StreamedRows, streamed

STRIP_BYTES = 128 * 2**20
"""Rows of a transposed matrix that are gathered at a time: each time, all rows of the source are read."""

TILE_ROWS = 256
"""Rows that are turned at a time: what a core's cache holds is turned three times as fast."""


def transposed(tensor: ir.TensorProtocol | None) -> StreamedRows:
    """W' [in, out] of W [out, in]; the transpose of a transpose is the matrix itself."""
    source = streamed(tensor)
    return source.source if isinstance(source, Transposed) else Transposed(source)


def stacked(tensors: Sequence[ir.TensorProtocol | None], name: str | None = None) -> StreamedRows:
    """The rows of several tensors below each other: matrices of one width, or vectors one after another."""
    return Stacked([streamed(tensor) for tensor in tensors], name)


def mapped(
    tensor: ir.TensorProtocol | None,
    function: Callable[[np.ndarray], np.ndarray],
    *,
    dtype: ir.DataType | None = None,
    width: int | None = None,
    name: str | None = None,
) -> StreamedRows:
    """Each row through a function: of [rows, in] an array [rows, width] of `dtype`; left out, they stay what they are.

    The function sees some of the rows at a time, so each row of its result may depend on that row alone. It is called
    when the file is written, and for a transposed result once for every strip.
    """
    return Mapped(streamed(tensor), function, dtype, width, name)


class Transposed(StreamedRows):
    """Columns of a matrix as rows."""

    block_bytes = STRIP_BYTES

    def __init__(self, source: StreamedRows) -> None:
        rows, columns = source.dims
        super().__init__(source.dtype, (columns, rows), source.name)
        self.source = source

    def rows(self, start: int, stop: int) -> np.ndarray:
        strip = np.empty((stop - start, self.source.num_rows), self.dtype.numpy())
        ranges = list(self.source.row_ranges())
        blocks = one_ahead(self.source.rows(*each) for each in ranges)
        for (first, last), block in zip(ranges, blocks, strict=True):
            _turn(block[:, start:stop], strip[:, first:last])
        return strip


def _turn(block: np.ndarray, turned: np.ndarray) -> None:
    """`turned[...] = block.T` by torch's tiled kernel, which numpy hasn't; elements are moved as integers."""
    integer = np.dtype(f"i{block.dtype.itemsize}")
    for first in range(0, len(block), TILE_ROWS):
        tile = torch.from_numpy(np.ascontiguousarray(block[first : first + TILE_ROWS]).view(integer))  # pyright: ignore[reportUnknownMemberType]
        turned.view(integer)[:, first : first + TILE_ROWS] = tile.t().contiguous().numpy()


class Stacked(StreamedRows):
    """Rows of one tensor after rows of another."""

    def __init__(self, sources: Sequence[StreamedRows], name: str | None) -> None:
        first, *others = sources
        assert all(source.dtype == first.dtype and source.dims[1:] == first.dims[1:] for source in others)
        super().__init__(first.dtype, (sum(source.num_rows for source in sources), *first.dims[1:]), name)
        self._sources = tuple(sources)

    def rows(self, start: int, stop: int) -> np.ndarray:
        pieces: list[np.ndarray] = []
        offset = 0
        for source in self._sources:
            first, last = max(start - offset, 0), min(stop - offset, source.num_rows)
            if first < last:
                pieces.append(source.rows(first, last))
            offset += source.num_rows
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class Mapped(StreamedRows):
    """Rows of a tensor, each through a function."""

    def __init__(
        self,
        source: StreamedRows,
        function: Callable[[np.ndarray], np.ndarray],
        dtype: ir.DataType | None,
        width: int | None,
        name: str | None,
    ) -> None:
        shape = source.dims if width is None else (source.num_rows, width)
        super().__init__(dtype or source.dtype, shape, name or source.name)
        self._source, self._function = source, function

    def rows(self, start: int, stop: int) -> np.ndarray:
        result = self._function(self._source.rows(start, stop))
        return result.astype(self.dtype.numpy(), copy=False).reshape(stop - start, *self.dims[1:])
