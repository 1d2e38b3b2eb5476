"""The model that is traced has no weights, and is otherwise the one that computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from hlap_export.checkpoint import load_model
from hlap_export.export.weightless import weightless_model
from hlap_export.families import FAMILIES
from tests.export.exports import tiny_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_fake_and_computed_buffers_equal_the_loaded_models(
    family: str, dtype: torch.dtype, root: Path
) -> None:
    checkpoint = tiny_checkpoint(root, family, "mixed")
    loaded, weightless = load_model(checkpoint, dtype=dtype), weightless_model(checkpoint, dtype)
    expected = {name: (tensor.shape, tensor.dtype) for name, tensor in loaded.named_parameters()}
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in weightless.named_parameters()} == expected
    assert all(isinstance(tensor, FakeTensor) for tensor in weightless.parameters())
    buffers = dict(weightless.named_buffers())
    assert buffers.keys() == dict(loaded.named_buffers()).keys()
    for name, buffer in loaded.named_buffers():
        assert buffers[name].dtype == buffer.dtype
        assert torch.equal(buffers[name], buffer), name


def test_real_models_can_be_made_again_afterwards(root: Path) -> None:
    weightless_model(tiny_checkpoint(root, "llama", "dense"), torch.float32)
    assert not isinstance(torch.nn.Linear(2, 2).weight, FakeTensor)
