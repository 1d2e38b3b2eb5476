"""Layers that compute the same with other weights: one of each kind is traced, whatever the model's depth.

Tracing takes about a second for a layer, and all but a few layers of a model repeat an earlier one. `only_layers`
leaves one of each kind in the model while it is traced; `repeat_layers.py` puts the others into the graph.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn

OWN_NUMBER = "layer_idx"
"""The attribute by which a module knows the layer that it is in: the one thing in which two alike layers differ."""

BOUNDARY = "LayerBoundary"
"""`hlap::LayerBoundary` stands before each traced layer and after the last one; the residual stream goes through."""


def first_alike(model: nn.Module) -> tuple[int, ...]:
    """For each decoder layer, the index of the first one that computes the same."""
    config, seen = cast(Any, model).config, dict[Hashable, int]()
    kinds = getattr(config, "layer_types", None)
    return tuple(
        seen.setdefault((_computation(layer), kinds[index] if kinds else None), index)
        for index, layer in enumerate(_layers(model))
    )


@contextmanager
def only_layers(model: nn.Module, indices: Sequence[int]) -> Generator[None]:
    """Leave these layers alone in the model, with a boundary node before each and after the last."""
    stack, config = cast(Any, model).model, cast(Any, model).config
    layers, count, kinds = stack.layers, config.num_hidden_layers, getattr(config, "layer_types", None)
    with ExitStack() as undo:
        for module in (*(layers[index] for index in indices), stack.norm):
            undo.callback(module.register_forward_pre_hook(_with_boundary).remove)
        stack.layers, config.num_hidden_layers = nn.ModuleList(layers[index] for index in indices), len(indices)
        if kinds:
            config.layer_types = [kinds[index] for index in indices]
        try:
            yield
        finally:
            stack.layers, config.num_hidden_layers = layers, count
            if kinds:
                config.layer_types = kinds


def _layers(model: nn.Module) -> Sequence[nn.Module]:
    return cast(Any, model).model.layers


def _computation(layer: nn.Module) -> Hashable:
    """All that decides what a layer computes, but for its weights' values: classes, shapes and plain settings."""
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    modules = cast(Iterable[tuple[str, nn.Module]], layer.named_modules())
    settings = [
        (path, repr(module), name, value)
        for path, module in modules
        for name, value in sorted(vars(module).items())
        if name != OWN_NUMBER and isinstance(value, int | float | str | bool | None)
    ]
    return tuple((name, tuple(tensor.shape)) for name, tensor in tensors), tuple(settings)


def _with_boundary(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    h_BTD, *rest = arguments
    marked = torch.onnx.ops.symbolic(f"hlap::{BOUNDARY}", (h_BTD,), {}, dtype=h_BTD.dtype, shape=h_BTD.shape, version=1)
    return (marked, *rest)
