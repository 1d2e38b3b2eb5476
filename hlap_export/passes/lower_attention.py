"""Attention in plain ONNX operators."""

from __future__ import annotations

from typing import Any, cast

import ml_dtypes
import numpy as np
import onnx_ir as ir

from hlap_export.errors import ExportError
from hlap_export.passes.nodes import constant, initializer, node_before, required

NUMPY_DTYPES = {
    ir.DataType.FLOAT: np.dtype(np.float32),
    ir.DataType.FLOAT16: np.dtype(np.float16),
    ir.DataType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
}


class LowerAttention(ir.passes.InPlacePass):
    """`hlap::Attention(q, k, v, mask)` becomes `softmax(cap(scale * q k^T) + mask) v` in plain operators.

    A boolean mask, true where a key is seen, puts a very low score elsewhere.

    Grouped-query attention never repeats K or V: the G = H / K query heads of a group are rows of one matrix,
    [B, H, T, E] read as [B, K, G * T, E], which is a reshape without a copy. The softmax runs in float32, as in
    the torch model; scaling q instead of the scores keeps the product inside float16's range.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "Attention")]
        for node in attentions:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, bool(attentions))


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    query, key, value, mask = (required(node, index) for index in range(4))
    num_heads, num_kv_heads, head_dim = _heads(query), _heads(key), _static(query, 3)
    context = node.outputs[0]

    query = node_before(node, "Mul", [query, _scalar(graph, node, "scale", query)], like=query)
    if num_heads != num_kv_heads:
        query = node_before(node, "Reshape", [query, constant(graph, [0, num_kv_heads, -1, head_dim])])
    scores = node_before(node, "MatMul", [query, node_before(node, "Transpose", [key], {"perm": [0, 1, 3, 2]})])
    if node.attributes["softcap"].as_float() > 0:
        cap = _scalar(graph, node, "softcap", context)
        scores = node_before(node, "Mul", [node_before(node, "Tanh", [node_before(node, "Div", [scores, cap])]), cap])
    if num_heads != num_kv_heads:
        scores = node_before(node, "Reshape", [scores, constant(graph, [0, num_heads, -1, 0])])
    weights = _softmax(node, _masked(graph, node, scores, mask), context.dtype)
    if num_heads != num_kv_heads:
        weights = node_before(node, "Reshape", [weights, constant(graph, [0, num_kv_heads, -1, 0])])
    result = node_before(node, "MatMul", [weights, value])
    if num_heads != num_kv_heads:
        result = node_before(node, "Reshape", [result, constant(graph, [0, num_heads, -1, head_dim])])
    result.shape, result.type = context.shape, context.type
    ir.convenience.replace_all_uses_with(context, result, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    result.name = context.name


def _masked(graph: ir.Graph, node: ir.Node, scores: ir.Value, mask: ir.Value) -> ir.Value:
    if mask.dtype != ir.DataType.BOOL:
        return node_before(node, "Add", [scores, mask])
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    low = np.array(cast(Any, ml_dtypes).finfo(NUMPY_DTYPES[dtype]).min, dtype=NUMPY_DTYPES[dtype])
    return node_before(node, "Where", [mask, scores, initializer(graph, "attention.hidden", low, dtype)])


def _softmax(node: ir.Node, scores: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    if dtype in (None, ir.DataType.FLOAT):
        return node_before(node, "Softmax", [scores], {"axis": -1})
    scores = node_before(node, "Cast", [scores], {"to": ir.DataType.FLOAT.value})
    weights = node_before(node, "Softmax", [scores], {"axis": -1})
    return node_before(node, "Cast", [weights], {"to": dtype.value})


def _scalar(graph: ir.Graph, node: ir.Node, attribute: str, like: ir.Value) -> ir.Value:
    """A float attribute as a scalar of the activations' dtype, one initializer per distinct number."""
    number, dtype = node.attributes[attribute].as_float(), like.dtype or ir.DataType.FLOAT
    if dtype not in NUMPY_DTYPES:
        raise ExportError(
            where=f"node {node.name}",
            expected=f"activations in {', '.join(str(known) for known in NUMPY_DTYPES)}",
            found=str(dtype),
            fix="export with --dtype float32, float16 or bfloat16",
        )
    return initializer(graph, f"attention.{attribute}.{number:.9g}", np.array(number, dtype=NUMPY_DTYPES[dtype]), dtype)


def _heads(value: ir.Value) -> int:
    return _static(value, 1)


def _static(value: ir.Value, axis: int) -> int:
    """A dimension that the tracer knows as a number."""
    dim = value.shape[axis] if value.shape is not None else None
    if not isinstance(dim, int):
        raise ExportError(
            where=f"attention input {value.name}",
            expected="head counts and head size known at export",
            found=f"dimension {axis} is {dim}",
            fix="report this model's config.json: its attention layout isn't static",
        )
    return dim
