"""Streamed weights: the same numbers as arrays, whatever the size of the blocks that they come in."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir import DataType

from hlap_export.weights import Part, StreamedRows, derived, mapped, stacked, streamed, transposed
from hlap_export.weights.arranged import Transposed

W = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
ROW_BYTES = 5 * 4


class Counted(StreamedRows):
    """An array as a streamed tensor that remembers which rows were asked for."""

    def __init__(self, array: np.ndarray, rows_at_a_time: int) -> None:
        super().__init__(DataType.FLOAT, array.shape, "w")
        self.block_bytes = rows_at_a_time * array[0].nbytes
        self.asked: list[tuple[int, int]] = []
        self._array = array

    def rows(self, start: int, stop: int) -> np.ndarray:
        self.asked.append((start, stop))
        return self._array[start:stop]


def tensor(array: np.ndarray) -> ir.Tensor:
    return ir.Tensor(array, name="w")


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 3, 7, 100])
def test_blocks_are_the_rows_once_and_in_order(rows_at_a_time: int) -> None:
    source = Counted(W, rows_at_a_time)
    assert b"".join(block.tobytes() for block in source.blocks()) == W.tobytes()
    assert max(stop - start for start, stop in source.asked) == min(rows_at_a_time, 7)


@pytest.mark.parametrize("strip_rows", [1, 2, 5])
@pytest.mark.parametrize("rows_at_a_time", [1, 3, 7])
def test_a_transposed_matrix_is_gathered_in_strips(
    strip_rows: int, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Transposed, "block_bytes", strip_rows * W.shape[0] * 4)
    turned = transposed(Counted(W, rows_at_a_time))
    blocks = list(turned.blocks())
    assert (np.concatenate(blocks) == W.T).all()
    assert {len(block) for block in blocks[:-1]} <= {strip_rows}
    assert (turned.numpy() == W.T).all()
    assert turned.tobytes() == W.T.tobytes()


def test_the_transpose_of_a_transpose_is_the_matrix_itself() -> None:
    source = Counted(W, 2)
    assert transposed(transposed(source)) is source


def test_packed_matrices_are_columns_beside_columns() -> None:
    q, k = W[:4], W[4:]
    packed = transposed(stacked([tensor(q), tensor(k)], name="qk"))
    assert packed.dims == (5, 7)
    assert (packed.numpy() == np.concatenate([q.T, k.T], axis=1)).all()
    assert (np.concatenate(list(packed.blocks())) == packed.numpy()).all()


def test_stacked_vectors_follow_each_other() -> None:
    assert (stacked([tensor(W[0]), tensor(W[1])]).numpy() == np.concatenate([W[0], W[1]])).all()


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (0, 3), (3, 4), (2, 6), (4, 7)])
def test_rows_of_a_stack_may_span_its_sources(start: int, stop: int) -> None:
    stack = stacked([Counted(W[:3], 1), Counted(W[3:4], 1), Counted(W[4:], 1)])
    assert (stack.rows(start, stop) == W[start:stop]).all()


def test_a_mapped_matrix_may_have_another_width_and_dtype() -> None:
    gain = np.arange(5, dtype=np.float32)
    assert (mapped(Counted(W, 2), lambda rows: rows * gain).numpy() == W * gain).all()
    product = mapped(Counted(W, 2), lambda rows: rows.astype(np.float64) @ W.T, dtype=DataType.FLOAT16, width=7)
    assert product.dims == (7, 7)
    assert product.nbytes == 7 * 7 * 2
    assert (product.numpy() == (W.astype(np.float64) @ W.T).astype(np.float16)).all()


def quantised(rows: np.ndarray) -> Sequence[np.ndarray]:
    scales = np.abs(rows).max(axis=1, keepdims=True)
    return np.rint(rows / scales * 127).astype(np.int8), scales


PARTS = (
    Part(name="packed", dtype=DataType.INT8, shape=(7, 5)),
    Part(name="scales", dtype=DataType.FLOAT, shape=(7, 1)),
)


def test_parts_written_one_after_another_are_computed_once() -> None:
    source = Counted(W, 2)
    packed, scales = derived(source, quantised, PARTS)
    expected = quantised(W)
    assert b"".join(block.tobytes() for block in packed.blocks()) == expected[0].tobytes()
    assert (scales.numpy() == expected[1]).all()
    assert source.asked == [(0, 2), (2, 4), (4, 6), (6, 7)]


def test_parts_read_in_any_order_and_twice_are_still_right() -> None:
    packed, scales = derived(Counted(W, 3), quantised, PARTS)
    expected = quantised(W)
    for part, array in ((scales, expected[1]), (scales, expected[1]), (packed, expected[0]), (packed, expected[0])):
        assert (part.numpy() == array).all()


def test_nothing_is_read_before_the_numbers_are_asked_for() -> None:
    source = Counted(W, 2)
    packed, _ = derived(transposed(stacked([mapped(source, np.negative)])), quantised, PARTS)
    assert (packed.dims, packed.nbytes, packed.dtype) == ((7, 5), 35, DataType.INT8)
    assert not source.asked


def test_a_streamed_tensor_serves_an_onnx_model_like_any_other() -> None:
    value = ir.Value(name="w", const_value=transposed(Counted(W, 2)))
    proto = ir.to_proto(value.const_value)
    assert (ir.from_proto(proto).numpy() == W.T).all()


def test_scalars_and_brain_floats_stream_too() -> None:
    scalar = ir.Tensor(np.asarray(3.0, np.float32), name="s")
    assert (streamed(scalar).numpy().shape, streamed(scalar).tobytes()) == ((), np.float32(3.0).tobytes())
    halves = ir.Tensor(W.astype(DataType.BFLOAT16.numpy()), name="h", dtype=DataType.BFLOAT16)
    assert transposed(halves).tobytes() == halves.numpy().T.tobytes()
