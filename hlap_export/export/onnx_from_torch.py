"""The single trace: a torch model becomes an ONNX graph before any pass."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Generator
from dataclasses import replace
from typing import Any, cast

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim

from hlap_export.checkpoint import ModelLayout
from hlap_export.export.alike_layers import first_alike, only_layers
from hlap_export.export.attention import attention_traced_as_node
from hlap_export.export.decoder import FlatDecoder
from hlap_export.export.io_contract import IOContract, io_contract
from hlap_export.export.norms_and_rotary import norms_and_rotary_traced_as_nodes
from hlap_export.export.repeat_layers import repeat_layers

# torch's operator library is written in opset 18: asking for another one sends the graph through a version converter.
# It is from ONNX 1.13, old enough for deployed engines that lag behind. The file's IR version must be as old: torch
# writes 10, which runtimes from before ONNX 1.16 refuse, and nothing here needs it.
OPSET, IR_VERSION = 18, 8

# No size that is traced may be 0 or 1: torch would take it for a constant. Two rows, one of them padded on the left.
BATCH_SIZE, NEW_TOKENS, PAST_TOKENS, PADDING = 2, 3, 5, 2


def onnx_from_torch(model: nn.Module, layout: ModelLayout, contract: IOContract) -> ir.Model:
    """Trace `model` as a function of flat tensors and translate it to ONNX operators, unoptimised.

    One layer of each kind is traced, and repeated in the graph. Weights stay references to the model's own tensors,
    which may be fake (see `weightless.py`). Dimensions carry torch's symbols, not yet the contract's names.

    Args:
        model: a causal LM in evaluation mode, in the dtype of the export.
        layout: its layers.
        contract: its inputs and outputs.
    """
    alike = first_alike(model)
    with only_layers(model, sorted(set(alike))):
        onnx_model = _traced(model, replace(layout, layers=tuple(layout.layers[index] for index in sorted(set(alike)))))
    onnx_model.ir_version = IR_VERSION
    _name_weights(onnx_model, model)
    repeat_layers(onnx_model.graph, alike, contract)
    _order_weights(onnx_model.graph, model)
    return onnx_model


def _traced(model: nn.Module, layout: ModelLayout) -> ir.Model:
    dtype = cast(torch.dtype, cast(Any, model).dtype)
    contract, inputs = io_contract(layout, str(dtype).removeprefix("torch.")), _sample_inputs(layout, dtype)
    cached = [layer.index for layer in layout.cached_layers]
    with _quiet(), torch.no_grad(), attention_traced_as_node(model), norms_and_rotary_traced_as_nodes(model):
        program = torch.export.export(
            FlatDecoder(model, cached), inputs, dynamic_shapes=_dynamic_shapes(len(inputs[3])), strict=False
        )
        traced = cast(Any, torch.onnx).export(
            program,
            (),
            input_names=[spec.name for spec in contract.inputs],
            output_names=[spec.name for spec in contract.outputs],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
    return cast(ir.Model, traced.model)


def _sample_inputs(layout: ModelLayout, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    tokens = torch.zeros(BATCH_SIZE, NEW_TOKENS, dtype=torch.int64)
    mask = torch.ones(BATCH_SIZE, PAST_TOKENS + NEW_TOKENS, dtype=torch.int64)
    mask[1, :PADDING] = 0
    past = tuple(
        torch.zeros(BATCH_SIZE, layer.num_kv_heads, PAST_TOKENS, layout.head_dim, dtype=dtype)
        for layer in layout.cached_layers
        for _ in ("key", "value")
    )
    return cast(tuple[torch.Tensor, ...], (tokens, mask, tokens.clone(), past))


def _dynamic_shapes(num_past: int) -> tuple[Any, ...]:
    batch, sequence, past = Dim("batch", min=1), Dim("sequence", min=1), Dim("past_sequence", min=0)
    return (
        {0: batch, 1: sequence},
        {0: batch, 1: Dim.AUTO},  # found to be past_sequence + sequence, which no named Dim can say
        {0: batch, 1: sequence},
        tuple({0: batch, 2: past} for _ in range(num_past)),
    )


def _name_weights(onnx_model: ir.Model, model: nn.Module) -> None:
    """Give initializers the names that the model's tensors have in its checkpoint; a tied one has its first name."""
    names = {id(tensor): name for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
    for value in tuple(onnx_model.graph.initializers.values()):
        name = names.get(id(getattr(value.const_value, "raw", None)))
        if name is not None:
            value.name = name


def _order_weights(graph: ir.Graph, model: nn.Module) -> None:
    """Sort initializers as the model has them, layer by layer; torch's own constants come after them."""
    places = {name: place for place, (name, _) in enumerate([*model.named_parameters(), *model.named_buffers()])}
    values = sorted(graph.initializers.values(), key=lambda value: places.get(value.name or "", len(places)))
    graph.initializers.clear()
    for value in values:
        graph.initializers.add(value)


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Keep the exporter's notes about itself (torchvision isn't installed, pytree deprecations) off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
