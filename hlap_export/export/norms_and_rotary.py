"""RMSNorm and rotary embedding as one traced node each.

Like attention (see `attention.py`): a flavour's passes decide what a norm becomes, instead of recognising one in six
operators. It also halves the time that a trace takes, which goes into symbolic shapes, operator by operator.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import Any, cast
from unittest import mock

import torch
from torch import nn


@contextmanager
def norms_and_rotary_traced_as_nodes(model: nn.Module) -> Generator[None]:
    """Trace the model's RMSNorms and rotary embeddings as `hlap::RMSNorm` and `hlap::RotaryEmbedding` nodes.

    transformers' families name the classes `...RMSNorm` and the function `apply_rotary_pos_emb`. A module of another
    name is traced operator by operator, which is as right.
    """
    classes = {type(module) for module in model.modules()}
    with ExitStack() as stack:
        for norm in (found for found in classes if found.__name__.endswith("RMSNorm")):
            forward = _unit_offset_norm if norm.__name__.startswith("Gemma") else _norm
            stack.enter_context(mock.patch.object(norm, "forward", forward))
        for module in sorted({found.__module__ for found in classes}):
            if hasattr(sys.modules[module], "apply_rotary_pos_emb"):
                stack.enter_context(mock.patch(f"{module}.apply_rotary_pos_emb", _rotary))
        yield


def _norm(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`w * round(x / rms(x))`: rounded to the activations' dtype before the gain w."""
    return _norm_node(x, cast(torch.Tensor, self.weight), cast(float, self.variance_epsilon), gain_first=False)


def _unit_offset_norm(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Gemma's `round((1 + w) * x / rms(x))`: the gain in float32, before rounding."""
    return _norm_node(x, 1.0 + cast(torch.Tensor, self.weight).float(), cast(float, self.eps), gain_first=True)


def _norm_node(x: torch.Tensor, gain: torch.Tensor, epsilon: float, *, gain_first: bool) -> torch.Tensor:
    return torch.onnx.ops.symbolic(
        "hlap::RMSNorm",
        (x, gain),
        {"epsilon": float(epsilon), "gain_before_rounding": int(gain_first)},
        dtype=x.dtype,
        shape=x.shape,
        version=1,
    )


def _rotary(
    query_BHTE: torch.Tensor, key_BKTE: torch.Tensor, cos_BTE: torch.Tensor, sin_BTE: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    rotated = [
        torch.onnx.ops.symbolic("hlap::RotaryEmbedding", (x, cos_BTE, sin_BTE), dtype=x.dtype, shape=x.shape, version=1)
        for x in (query_BHTE, key_BKTE)
    ]
    return rotated[0], rotated[1]
