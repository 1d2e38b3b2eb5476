"""RMSNorm in plain ONNX operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hlap_export.passes.nodes import constant, initializer, node_before, required

FLOAT = ir.DataType.FLOAT


class LowerNorms(ir.passes.InPlacePass):
    """`hlap::RMSNorm(x, w)` becomes `w * x / sqrt(mean(x^2) + epsilon)`, computed in float32.

    In this form, with a division by the root, ONNX Runtime, OpenVINO and TensorRT recognise it and fuse it. In half
    precision the result is rounded before the gain, or after it where the family does (Gemma).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "RMSNorm")]
        for node in norms:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, bool(norms))


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    x, gain, output = required(node, 0), required(node, 1), node.outputs[0]
    epsilon = node.attributes["epsilon"].as_float()
    gain_before_rounding = bool(node.attributes["gain_before_rounding"].as_int())
    is_half = output.dtype not in (None, FLOAT)

    if is_half:
        x = node_before(node, "Cast", [x], {"to": FLOAT.value})
    square = node_before(node, "Pow", [x, initializer(graph, "norm.two", np.array(2, dtype=np.float32))])
    mean = node_before(node, "ReduceMean", [square, constant(graph, [-1])], {"keepdims": 1})
    small = initializer(graph, f"norm.epsilon.{epsilon:.9g}", np.array(epsilon, dtype=np.float32))
    result = node_before(node, "Div", [x, node_before(node, "Sqrt", [node_before(node, "Add", [mean, small])])])
    if gain_before_rounding:
        result = node_before(node, "Mul", [result, gain])
    if is_half:
        result = node_before(node, "Cast", [result], {"to": required(node, 0).dtype or FLOAT})
    if not gain_before_rounding:
        result = node_before(node, "Mul", [result, gain])
    result.shape, result.type = output.shape, output.type
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = output.name
