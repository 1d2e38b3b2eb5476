"""Matrices in 4 and 8 bits: what is stored means what was there, block by block."""

from __future__ import annotations

import numpy as np
import pytest

from hlap_export.passes.blockwise import Blockwise
from tests.passes.dequantised import PARTS, dequantised

FORMATS = [(bits, block_size) for bits in (4, 8) for block_size in (16, 32, 128)]


def weights(rows: int, columns: int) -> np.ndarray:
    """Blocks of very different sizes and means: one scale for all of them would lose the small ones."""
    random = np.random.default_rng(0)
    sizes = 10.0 ** random.integers(-4, 3, (rows, columns // 16 + 1)).repeat(16, axis=1)[:, :columns]
    return (sizes * (random.standard_normal((rows, columns)) + 0.5)).astype(np.float32)


@pytest.mark.parametrize(("bits", "block_size"), FORMATS)
@pytest.mark.parametrize("columns", [128, 80, 37])
def test_no_weight_is_off_by_more_than_a_step_of_its_own_block_nor_by_half_a_step_on_average(
    bits: int, block_size: int, columns: int
) -> None:
    w = weights(7, columns)
    restored = dequantised(*Blockwise(bits=bits, block_size=block_size).quantise(w), bits=bits, columns=columns)
    for start in range(0, columns, block_size):
        block, error = w[:, start : start + block_size], np.abs(w - restored)[:, start : start + block_size]
        low, high = np.minimum(block.min(axis=1), 0), np.maximum(block.max(axis=1), 0)
        # Without a zero point the range is equally long on both sides, and a number at its end is off by up to a step.
        # A zero point is rounded to a step as well: at the end of the range, half a step more.
        step = 2 * np.maximum(high, -low) / 2**bits if bits == 4 else (high - low) / (2**bits - 1)
        assert (error.max(axis=1) <= 1.001 * step).all()
        assert (np.sqrt((error**2).mean(axis=1)) <= 0.51 * step).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_and_constants_survive_as_they_are(bits: int) -> None:
    w = np.array([[0.0] * 32, [0.75] * 32, [-3.0] * 32], np.float32)
    restored = dequantised(*Blockwise(bits=bits, block_size=32).quantise(w), bits=bits, columns=32)
    assert np.allclose(restored, w, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_quantised_the_same_alone_and_together(bits: int) -> None:
    """The file is written some rows at a time."""
    blockwise, w = Blockwise(bits=bits, block_size=16), weights(10, 48)
    halves = zip(blockwise.quantise(w[:3]), blockwise.quantise(w[3:]), strict=True)
    for whole, half in zip(blockwise.quantise(w), halves, strict=True):
        assert (whole == np.concatenate(half)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_come_in_the_shapes_that_the_parts_promise(bits: int) -> None:
    blockwise = Blockwise(bits=bits, block_size=16)
    parts, arrays = blockwise.parts("w", 5, 80), blockwise.quantise(weights(5, 80))
    assert [part.name for part in parts] == [f"w.{part}" for part in PARTS[bits]]
    assert [part.shape for part in parts] == [array.shape for array in arrays]
    assert [part.shape for part in parts] == [(5, 5, 2 * bits), (5, 5), (5, 5)][: len(parts)]
