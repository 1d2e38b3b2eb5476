"""One matrix instead of two, where it is the smaller of both."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hlap_export.passes.nodes import register, required
from hlap_export.weights import StreamedRows, mapped, transposed


class MergeValueProjections(ir.passes.InPlacePass):
    """`MatMul(MatMul(x, V), O)` becomes `MatMul(x, V O)` where V O has fewer elements than V and O together.

    That is attention without queries and keys, [hidden, kv] and [kv, hidden], when 2 kv > hidden: without grouped
    heads, or with heads that are larger than hidden / heads (Gemma). The product is computed in float64 and rounded
    once, while the file is written.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in list(model.graph):
            inner = _inner_product(node)
            if inner is not None and _is_smaller(inner, node):
                _merge(model.graph, inner, node)
                modified = True
        return ir.passes.PassResult(model, modified)


def _inner_product(node: ir.Node) -> ir.Node | None:
    """The `MatMul` whose result `node`, a `MatMul` too, reads alone; both by weights that nothing else reads."""
    if not _multiplies_by_weight(node):
        return None
    inner = required(node, 0).producer()
    if inner is None or not _multiplies_by_weight(inner):
        return None
    values = inner.outputs[0]
    return inner if len(values.uses()) == 1 and not values.is_graph_output() else None


def _multiplies_by_weight(node: ir.Node) -> bool:
    if node.op_type != "MatMul" or node.domain:
        return False
    weight = required(node, 1)
    return weight.is_initializer() and len(weight.uses()) == 1 and weight.shape is not None and len(weight.shape) == 2


def _is_smaller(inner: ir.Node, outer: ir.Node) -> bool:
    (width, kv), (_, out) = (transposed(required(node, 1).const_value).dims[::-1] for node in (inner, outer))
    return width * out < kv * (width + out)


def _merge(graph: ir.Graph, inner: ir.Node, outer: ir.Node) -> None:
    values, outputs = (transposed(required(node, 1).const_value) for node in (inner, outer))
    name = required(outer, 1).name
    assert name is not None
    outer.replace_input_with(0, required(inner, 0))
    outer.replace_input_with(1, register(graph, name.replace("o_proj", "vo_proj"), _product(outputs, values)))
    graph.remove(inner, safe=True)


def _product(outputs: StreamedRows, values: StreamedRows) -> StreamedRows:
    """O V of O [out, kv] and V [kv, in], as torch keeps them, stored as [in, out]."""

    def multiplied(rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.float64) @ values.numpy().astype(np.float64)

    return transposed(mapped(outputs, multiplied, width=values.dims[1]))
