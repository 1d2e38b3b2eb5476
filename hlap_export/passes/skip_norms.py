"""An addition to the residual stream and the norm that follows it, in one operator."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.group_query_attention import MICROSOFT
from hlap_export.passes.nodes import required


class SkipNorms(ir.passes.InPlacePass):
    """`hlap::RMSNorm(a + b, w)` becomes `com.microsoft::SkipSimplifiedLayerNormalization(a, b, w)`.

    A bias that was added to a or b alone, as a projection adds it, becomes the operator's fourth input: one operator
    less. The operator also returns a + b, which the next addition reads. It rounds to the activations' dtype where the
    norm does; a gain in another dtype (Gemma's in half precision) is left to `LowerNorms`, and so is a norm of
    anything but a sum.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        norms = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "RMSNorm")]
        fused = [node for node in norms if _fuse(model.graph, node)]
        if fused:
            model.graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, bool(fused))


def _fuse(graph: ir.Graph, node: ir.Node) -> bool:
    total, gain = required(node, 0), required(node, 1)
    addition = total.producer()
    if addition is None or addition.op_type != "Add" or addition.domain or gain.dtype != total.dtype:
        return False
    left, right = required(addition, 0), required(addition, 1)
    if left.shape is None or left.shape != right.shape or len(left.shape) != 3:
        return False
    inputs, gone = [left, right, gain], [addition, node]
    for index, operand in enumerate((left, right)):
        if biased := _addition_of_bias(operand):
            inputs[index] = required(biased, 0)
            inputs.append(required(biased, 1))
            gone.append(biased)
            break
    fused = ir.node(
        "SkipSimplifiedLayerNormalization",
        inputs,
        {"epsilon": node.attributes["epsilon"].as_float()},
        domain=MICROSOFT,
        num_outputs=4,
    )
    fused.metadata_props.update(node.metadata_props)
    # Where the sum was: it may be read before the norm.
    graph.insert_before(addition, fused)
    normed, mean, deviation, skipped = fused.outputs
    for old, new in ((node.outputs[0], normed), (total, skipped)):
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    mean.name = deviation.name = ""  # outputs that are left out: named, they would be computed
    graph.remove(gone, safe=True)
    return True


def _addition_of_bias(value: ir.Value) -> ir.Node | None:
    """The node that makes the value of a product and a vector, where nothing but one addition reads it."""
    node = value.producer()
    if node is None or node.op_type != "Add" or node.domain or len(value.uses()) != 1:
        return None
    product, bias = required(node, 0), required(node, 1)
    is_bias = bias.is_initializer() and bias.shape is not None and len(bias.shape) == 1
    return node if is_bias and not product.is_initializer() else None
