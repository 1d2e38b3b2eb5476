"""ONNX's own rotary embedding."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.nodes import node_before, required
from hlap_export.passes.tabulate_rotary import POSITIONS


class RotaryOperator(ir.passes.InPlacePass):
    """`hlap::RotaryEmbedding(x, cos, sin)` with tables becomes `RotaryEmbedding(x, cos, sin, position_ids)`, opset 23.

    Runs after `TabulateRotary`. Tables, not angles computed in each step: a compiler's fast cosine is inexact for
    the large angles of late positions.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rotations = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "RotaryEmbedding")]
        for node in rotations:
            positions = next(value for value in model.graph.inputs if value.name == POSITIONS)
            x, cos, sin = (required(node, index) for index in range(3))
            assert cos.is_initializer() and sin.is_initializer(), "tables over positions"
            output = node.outputs[0]
            result = node_before(node, "RotaryEmbedding", [x, cos, sin, positions], like=output)
            ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
            result.name = output.name
        return ir.passes.PassResult(model, bool(rotations))
