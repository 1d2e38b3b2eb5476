"""Trace without weights, then read them from the checkpoint one at a time while the file is written.

A graph depends on shapes alone. The traced model's parameters are therefore fake tensors, which have a shape and no
memory, and the ONNX initializers refer to the checkpoint's safetensors: exporting takes the memory of a few blocks
of a tensor, not of the model.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from unittest import mock

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from hlap_export.checkpoint.loading import model_class_of
from hlap_export.checkpoint.tensors import HEAD, CheckpointTensors
from hlap_export.weights.stored import CheckpointRows


def weightless_model(checkpoint: Path, dtype: torch.dtype) -> nn.Module:
    """The checkpoint's model in evaluation mode, with fake parameters of `dtype`; its computed buffers are real."""
    model_class = model_class_of(checkpoint)
    config = model_class.config_class.from_pretrained(checkpoint, local_files_only=True)
    with _parameters_are_fake(dtype):
        model = cast(nn.Module, model_class._from_config(config, dtype=dtype))
    return model.eval()


@contextmanager
def _parameters_are_fake(dtype: torch.dtype) -> Generator[None]:
    """Replace every parameter by a fake one as soon as a module registers it, before anything initialises it."""
    fake_mode = FakeTensorMode()
    register = nn.Module.register_parameter

    def register_fake(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not isinstance(parameter, FakeTensor):  # a tied one is fake already
            with fake_mode:
                parameter = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), requires_grad=False)
        register(module, name, parameter)

    with mock.patch.object(nn.Module, "register_parameter", register_fake):
        yield


def attach_weights(model: ir.Model, tensors: CheckpointTensors) -> None:
    """Let each initializer without data read the checkpoint's tensor of its name, when written, in its own dtype."""
    stored = CheckpointRows(tensors)
    for value in model.graph.initializers.values():
        fake = value.const_value
        if fake is not None and isinstance(getattr(fake, "raw", None), FakeTensor):
            assert value.name is not None
            # A tied pair is stored under either name.
            name = value.name if value.name in stored else HEAD
            value.const_value = stored.tensor(name, fake.dtype)
            value.const_value.name = value.name
