from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch

from hlap_export.checkpoint import reading
from hlap_export.checkpoint.reading import WeightReader
from hlap_export.checkpoint.tensors import open_tensors
from hlap_export.errors import CheckpointError


def write(folder: Path, **tensors: torch.Tensor) -> WeightReader:
    cast(Any, safetensors.torch).save_file(tensors, folder / "model.safetensors")
    return WeightReader(open_tensors(folder))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_bytes", [1, 100, 2**20])
def test_rows_are_read_and_converted_whatever_the_block(
    dtype: torch.dtype, block_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block_bytes)
    matrix, vector = torch.randn(11, 5).to(dtype), torch.randn(3).to(dtype)
    reader = write(tmp_path, before=torch.zeros(7), matrix=matrix, vector=vector)
    assert torch.equal(reader.read("matrix"), matrix.float())
    assert torch.equal(reader.read("matrix", 4, 9), matrix[4:9].float())
    assert torch.equal(reader.read("vector"), vector.float())
    assert torch.equal(reader.read_rows("matrix", [10, 0, 3]), matrix[[10, 0, 3]].float())


def test_integers_are_no_weights(tmp_path: Path) -> None:
    reader = write(tmp_path, packed=torch.zeros(2, 2, dtype=torch.int8))
    with pytest.raises(CheckpointError, match=r"packed: expected floating-point weights.*found I8"):
        reader.read("packed")


def test_a_file_that_became_shorter_is_named(tmp_path: Path) -> None:
    reader = write(tmp_path, matrix=torch.zeros(8, 8))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: matrix: .*ends 10 bytes early"):
        reader.read("matrix")
