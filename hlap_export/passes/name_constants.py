"""Names for the constants that the tracer left anonymous."""

from __future__ import annotations

import re

import onnx_ir as ir

ANONYMOUS = re.compile(r"[a-z_]+(_\d+)?$")
"""Names that the tracer invents: `val_12`, `add_197`, `full`. Parameters have a dotted path."""


class NameConstants(ir.passes.InPlacePass):
    """Name an anonymous initializer after its first reader: `model.norm/Mul.constant`.

    Runs after `NameNodes`. A vector that folding made of a parameter (Gemma's gain 1 + w) is thereby found under
    the module that it belongs to.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, modified = model.graph, False
        readers = {
            value: (node, index) for node in reversed(graph) for index, value in reversed(list(enumerate(node.inputs)))
        }
        for name, value in list(graph.initializers.items()):
            if not ANONYMOUS.match(name) or value not in readers or value.is_graph_input():
                continue
            node, index = readers[value]
            value.name = f"{node.name}.{index}"
            modified = True
        return ir.passes.PassResult(model, modified)
