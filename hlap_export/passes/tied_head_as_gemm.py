"""Read a weight that is shared with the embedding without transposing it."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.nodes import constant, node_before
from hlap_export.passes.transpose_linear_weights import transposed_weight


class TiedHeadAsGemm(ir.passes.InPlacePass):
    """`MatMul(x, Transpose(W))` becomes `Gemm(x as a matrix, W, transB=1)` where W has other readers.

    A tied head and the embedding then share one stored tensor, at rest and in an engine: a `Transpose` of it would be
    folded into a second copy of the vocabulary matrix when the model is loaded.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for transpose in list(model.graph):
            weight = transposed_weight(transpose)
            if weight is None or len(weight.uses()) == 1:
                continue
            for use in tuple(transpose.outputs[0].uses()):
                _as_gemm(model.graph, use.node, weight)
            model.graph.remove(transpose, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def _as_gemm(graph: ir.Graph, matmul: ir.Node, weight: ir.Value) -> None:
    """Replace one `MatMul` of [B, T, D] by reshape, `Gemm` and a reshape to the known shape of its output."""
    x, y = matmul.inputs[0], matmul.outputs[0]
    assert x is not None and x.shape is not None and weight.shape is not None and y.name is not None
    rows, columns = (int(dim) for dim in weight.shape.numpy())
    matrix = node_before(matmul, "Reshape", [x, constant(graph, [-1, columns])], {"allowzero": 0})
    product = node_before(matmul, "Gemm", [matrix, weight], {"transB": 1})
    lead = node_before(matmul, "Shape", [x], {"start": 0, "end": len(x.shape) - 1})
    shape = node_before(matmul, "Concat", [lead, constant(graph, [rows])], {"axis": 0})
    result = node_before(matmul, "Reshape", [product, shape], {"allowzero": 0})
    result.shape, result.type = y.shape, y.type
    ir.convenience.replace_all_uses_with(y, result, replace_graph_outputs=True)
    graph.remove(matmul, safe=True)
    result.name = y.name
