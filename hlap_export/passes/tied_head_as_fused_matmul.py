"""Read a weight that is shared with the embedding without transposing it, in one operator."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.group_query_attention import MICROSOFT
from hlap_export.passes.nodes import required
from hlap_export.passes.transpose_linear_weights import transposed_weight


class TiedHeadAsFusedMatMul(ir.passes.InPlacePass):
    """`MatMul(x, Transpose(W))` becomes `com.microsoft::FusedMatMul(x, W, transB=1)` where W has other readers.

    As `TiedHeadAsGemm`, but in one operator of ONNX Runtime's own, that takes [B, T, D] as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for transpose in list(model.graph):
            weight = transposed_weight(transpose)
            if weight is None or len(weight.uses()) == 1:
                continue
            for use in tuple(transpose.outputs[0].uses()):
                _fuse(model.graph, use.node, weight)
            model.graph.remove(transpose, safe=True)
            modified = True
        if modified:
            model.graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, modified)


def _fuse(graph: ir.Graph, matmul: ir.Node, weight: ir.Value) -> None:
    old = matmul.outputs[0]
    fused = ir.node("FusedMatMul", [required(matmul, 0), weight], {"transB": 1}, domain=MICROSOFT)
    fused.metadata_props.update(matmul.metadata_props)
    new, name = fused.outputs[0], old.name
    new.shape, new.type = old.shape, old.type
    graph.insert_before(matmul, fused)
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(matmul, safe=True)
    new.name = name
