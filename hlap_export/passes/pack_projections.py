"""One product instead of three, where nothing lies between the projections and the attention."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.nodes import node_before, register, required
from hlap_export.weights import stacked, transposed

PACKED = "qkv_proj"


class PackProjections(ir.passes.InPlacePass):
    """`GroupQueryAttention(x Wq + bq, x Wk + bk, x Wv + bv)` becomes `GroupQueryAttention(x W + b)`, W = [Wq Wk Wv].

    The operator takes the three side by side as its query. One product reads x once and is handed to the threads
    once. Where queries and keys pass norms of their own, they stay apart.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            if node.op_type != "GroupQueryAttention" or node.inputs[1] is None:
                continue
            projections = [_projection(required(node, index)) for index in range(3)]
            found = [projection for projection in projections if projection is not None]
            if len(found) == len(projections) and len({projection.x for projection in found}) == 1:
                _pack(model.graph, node, found)
                modified = True
        return ir.passes.PassResult(model, modified)


class _Projection:
    """`MatMul(x, weight)`, or that plus a bias; read by the attention alone."""

    def __init__(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> None:
        self.x, self.weight, self.bias = x, weight, bias


def _projection(value: ir.Value) -> _Projection | None:
    node, bias = value.producer(), None
    if node is not None and node.op_type == "Add":
        biases = [operand for operand in node.inputs if operand is not None and operand.is_initializer()]
        others = [operand for operand in node.inputs if operand is not None and operand not in biases]
        if len(biases) != 1 or len(others) != 1 or len(value.uses()) != 1:
            return None
        bias, value = biases[0], others[0]
        node = value.producer()
    if node is None or node.op_type != "MatMul" or len(value.uses()) != 1:
        return None
    x, weight = required(node, 0), required(node, 1)
    return _Projection(x, weight, bias) if weight.is_initializer() and len(weight.uses()) == 1 else None


def _pack(graph: ir.Graph, attention: ir.Node, projections: list[_Projection]) -> None:
    biases = [projection.bias for projection in projections if projection.bias is not None]
    first, name = projections[0], _packed_name(projections[0].weight)
    # Torch's layout, [out, in], puts one matrix's rows below the other's.
    rows = stacked([transposed(projection.weight.const_value) for projection in projections])
    product = node_before(attention, "MatMul", [first.x, register(graph, name, transposed(rows))])
    if biases:
        assert len(biases) == len(projections), "all three projections have a bias, or none"
        bias = register(graph, _packed_name(biases[0]), stacked([bias.const_value for bias in biases]))
        product = node_before(attention, "Add", [product, bias])
    attention.replace_input_with(0, product)
    attention.replace_input_with(1, None)
    attention.replace_input_with(2, None)


def _packed_name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name.replace("q_proj", PACKED)
