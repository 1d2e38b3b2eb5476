"""Dimension names of the I/O contract throughout the graph."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir


class NameDims(ir.passes.InPlacePass):
    """Rename the tracer's symbols (`s15 + s70`) to the contract's (`past_sequence + sequence`), in every value.

    Args:
        named_by: for each name, the graph input and axis whose dimension it is.
    """

    def __init__(self, named_by: Mapping[str, tuple[str, int]]) -> None:
        super().__init__()
        self.named_by = named_by

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        symbols = self._symbols(model.graph)
        for value in _values(model.graph):
            if value.shape is not None:
                value.shape = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
        return ir.passes.PassResult(model, bool(symbols))

    def _symbols(self, graph: ir.Graph) -> dict[str, str]:
        inputs = {value.name: value for value in graph.inputs}
        symbols: dict[str, str] = {}
        for name, (tensor, axis) in self.named_by.items():
            shape = inputs[tensor].shape
            dim = shape[axis] if shape is not None else None
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                symbols[dim.value] = name
        return symbols


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(value for node in graph for value in node.outputs)]


def _renamed(dim: int | ir.SymbolicDim, symbols: Mapping[str, str]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    if dim.value is None:
        return None
    return re.sub(r"[A-Za-z_]\w*", lambda match: symbols.get(match[0], match[0]), dim.value)
