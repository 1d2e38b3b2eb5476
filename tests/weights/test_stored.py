"""A checkpoint's tensors, streamed: what safetensors itself reads, converted as torch converts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from onnx_ir import DataType
from safetensors.torch import save_file

from hlap_export.checkpoint.tensors import open_tensors
from hlap_export.errors import CheckpointError
from hlap_export.weights.stored import CheckpointRows

TENSORS = {
    "half": torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "single": torch.randn(5, 3, generator=torch.Generator().manual_seed(1)),
    "vector": torch.randn(9, generator=torch.Generator().manual_seed(2)).double(),
    "integers": torch.arange(3),
}


@pytest.fixture
def stored(tmp_path: Path) -> CheckpointRows:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return CheckpointRows(open_tensors(tmp_path))


@pytest.mark.parametrize("dtype", [DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16])
@pytest.mark.parametrize("name", ["half", "single", "vector"])
def test_rows_are_converted_as_torch_does(name: str, dtype: DataType, stored: CheckpointRows) -> None:
    torch_dtype = {DataType.FLOAT: torch.float32, DataType.FLOAT16: torch.float16, DataType.BFLOAT16: torch.bfloat16}
    tensor = stored.tensor(name, dtype)
    expected = TENSORS[name].to(torch_dtype[dtype])
    assert tensor.tobytes() == expected.contiguous().view(torch.uint8).numpy().tobytes()
    assert tensor.rows(2, 4).tobytes() == expected[2:4].contiguous().view(torch.uint8).numpy().tobytes()
    assert (tensor.dims, tensor.nbytes) == (tuple(expected.shape), expected.nbytes)


def test_integers_are_refused_as_weights(stored: CheckpointRows) -> None:
    with pytest.raises(CheckpointError, match="I64"):
        stored.tensor("integers", DataType.FLOAT)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(stored: CheckpointRows, tmp_path: Path) -> None:
    tensor = stored.tensor("half", DataType.FLOAT)  # the last one in the file
    os.truncate(tmp_path / "model.safetensors", (tmp_path / "model.safetensors").stat().st_size - 40)
    with pytest.raises(CheckpointError, match="bytes early"):
        tensor.numpy()
