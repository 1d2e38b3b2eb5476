"""Store the weight of a linear layer the way `MatMul` reads it."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.weights import transposed


class TransposeLinearWeights(ir.passes.InPlacePass):
    """`MatMul(x, Transpose(W))` becomes `MatMul(x, W')` with W' = W transposed, under W's name.

    torch keeps a linear layer's weight as [out, in]; quantisers and engines look for a constant second input of
    `MatMul`, [in, out]. The bytes are transposed when the model is written, some rows at a time. A weight that is
    also read as it is, an embedding tied to the head, is left for `TiedHeadAsGemm`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            weight = transposed_weight(node)
            if weight is None or len(weight.uses()) != 1:
                continue
            turned = transposed(weight.const_value)
            weight.const_value, weight.shape = turned, ir.Shape(turned.dims)
            ir.convenience.replace_all_uses_with(node.outputs[0], weight)
            model.graph.remove(node, safe=True)
            modified = True
        return ir.passes.PassResult(model, modified)


def transposed_weight(node: ir.Node) -> ir.Value | None:
    """The matrix W, an initializer, where `node` is `Transpose(W)` and every reader is a `MatMul`'s second input."""
    if node.op_type != "Transpose" or node.domain:
        return None
    weight = node.inputs[0]
    if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return None
    readers = node.outputs[0].uses()
    if not readers or any(use.node.op_type != "MatMul" or use.idx != 1 for use in readers):
        return None
    return weight
