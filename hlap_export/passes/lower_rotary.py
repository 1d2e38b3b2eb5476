"""Rotary position embedding in plain ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.nodes import constant, node_before, required


class LowerRotary(ir.passes.InPlacePass):
    """`hlap::RotaryEmbedding(x, cos, sin)` becomes `x * cos + concat(-x2, x1) * sin`, with x = concat(x1, x2).

    cos and sin, [B, T, E], get their axis for the heads once, not once per layer.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rotations = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "RotaryEmbedding")]
        broadcast: dict[ir.Value, ir.Value] = {}
        for node in rotations:
            for index in (1, 2):
                angles = required(node, index)
                if angles not in broadcast:
                    broadcast[angles] = node_before(node, "Unsqueeze", [angles, constant(model.graph, [1])])
            _lower(model.graph, node, broadcast[required(node, 1)], broadcast[required(node, 2)])
        return ir.passes.PassResult(model, bool(rotations))


def _lower(graph: ir.Graph, node: ir.Node, cos_B1TE: ir.Value, sin_B1TE: ir.Value) -> None:
    x, output = required(node, 0), node.outputs[0]
    assert x.shape is not None
    head_dim = x.shape[-1]
    assert isinstance(head_dim, int)
    split = node_before(
        node, "Split", [x, constant(graph, [head_dim // 2, head_dim // 2])], {"axis": -1}, num_outputs=2
    )
    producer = split.producer()
    assert producer is not None
    first, second = producer.outputs
    turned = node_before(node, "Concat", [node_before(node, "Neg", [second]), first], {"axis": -1}, like=output)
    result = node_before(
        node,
        "Add",
        [
            node_before(node, "Mul", [x, cos_B1TE], like=output),
            node_before(node, "Mul", [turned, sin_B1TE], like=output),
        ],
        like=output,
    )
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = output.name
