"""RMSNorm as engines recognise it."""

from __future__ import annotations

import onnx_ir as ir


class DivisionByRoot(ir.passes.InPlacePass):
    """`x * Reciprocal(Sqrt(v))` becomes `x / Sqrt(v)`: one node fewer, and the form that ONNX Runtime fuses."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "Reciprocal" or node.domain:
                continue
            root = node.inputs[0]
            producer = root.producer() if root is not None else None
            uses = tuple(node.outputs[0].uses())
            if producer is None or producer.op_type != "Sqrt" or not all(use.node.op_type == "Mul" for use in uses):
                continue
            for multiply, index in uses:
                _divide(model.graph, multiply, multiply.inputs[1 - index], root)
            if not node.outputs[0].uses():
                model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def _divide(graph: ir.Graph, multiply: ir.Node, x: ir.Value | None, root: ir.Value | None) -> None:
    division = ir.node("Div", [x, root])
    division.metadata_props.update(multiply.metadata_props)
    old, new = multiply.outputs[0], division.outputs[0]
    new.shape, new.type = old.shape, old.type
    graph.insert_before(multiply, division)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(multiply, safe=True)
    new.name = old.name
