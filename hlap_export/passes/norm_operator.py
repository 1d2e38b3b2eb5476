"""ONNX's own RMSNorm."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.nodes import node_before, required


class NormOperator(ir.passes.InPlacePass):
    """`hlap::RMSNorm(x, w)` becomes `RMSNormalization(x, w)` of opset 23 and later.

    The operator computes in float32 and rounds before the gain. Where the family's gain comes first and is in float32
    (Gemma), so is the whole norm, between two casts.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "RMSNorm")]
        for node in norms:
            _replace(model.graph, node)
        return ir.passes.PassResult(model, bool(norms))


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    x, gain, output = required(node, 0), required(node, 1), node.outputs[0]
    in_float32 = x.dtype != gain.dtype
    assert not in_float32 or gain.dtype == ir.DataType.FLOAT
    attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].as_float()}
    if in_float32:
        x = node_before(node, "Cast", [x], {"to": ir.DataType.FLOAT.value})
    result = node_before(node, "RMSNormalization", [x, gain], attributes)
    if in_float32 and output.dtype is not None:
        result = node_before(node, "Cast", [result], {"to": output.dtype.value})
    result.shape, result.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = output.name
