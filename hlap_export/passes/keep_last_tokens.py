"""Compute the logits of the last tokens alone where that is all that is asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hlap_export.passes.nodes import constant, node_before

NUM_KEPT = "num_logits_to_keep"
DIMENSION = "num_logits"
LAST_INDEX = np.iinfo(np.int64).max


class KeepLastTokens(ir.passes.InPlacePass):
    """Add the input `num_logits_to_keep`, int64 [1]: n gives the logits of the last n tokens, 0 (its default) all.

    Above the last attention every token is computed from itself alone. So the others are dropped right there, not
    before the head: the last layer's output projection and MLP, and the whole of every layer above whose attention
    was pruned, run for n tokens. A prompt's prefill needs no more than one.

    Runs while the operator still carries its shapes, after `GroupQueryAttention`.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
        if not attentions:
            return ir.passes.PassResult(model, False)
        mixing = _with_ancestors(attentions)
        crossing = {
            value: None
            for node in graph
            if node not in mixing
            for value in node.inputs
            if value is not None and value.producer() in mixing and _is_per_token(value)
        }
        start: ir.Value | None = None
        for value in crossing:
            first = next(node for node in graph if node not in mixing and value in node.inputs)
            start = start or node_before(first, "Neg", [_number_kept(graph)])
            _slice(graph, value, start, first, mixing)
        for node in graph:
            if node not in mixing:
                _rename_sequence(node, next(iter(crossing)))
        return ir.passes.PassResult(model, True)


def _number_kept(graph: ir.Graph) -> ir.Value:
    tensor = ir.tensor(np.zeros(1, np.int64), name=NUM_KEPT)
    value = ir.Value(name=NUM_KEPT, type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor)
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value


def _with_ancestors(nodes: list[ir.Node]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    while nodes:
        node = nodes.pop()
        if node not in found:
            found.add(node)
            nodes += [producer for value in node.inputs if value is not None and (producer := value.producer())]
    return found


def _is_per_token(value: ir.Value) -> bool:
    """Whether it is [B, T, channels], as the residual stream is."""
    return value.shape is not None and len(value.shape) == 3 and isinstance(value.shape[2], int)


def _slice(graph: ir.Graph, value: ir.Value, start: ir.Value, first: ir.Node, mixing: set[ir.Node]) -> None:
    """Let every reader of `value` that isn't in `mixing` read its last tokens."""
    end, axis = constant(graph, [LAST_INDEX]), constant(graph, [1])
    last = node_before(first, "Slice", [value, start, end, axis], like=value)
    for use in tuple(value.uses()):
        if use.node not in mixing and use.node is not last.producer():
            use.node.replace_input_with(use.idx, last)


def _rename_sequence(node: ir.Node, whole: ir.Value) -> None:
    """Say in the shapes above the attention that there may be fewer tokens: a runtime plans its buffers by them."""
    assert whole.shape is not None
    for value in node.outputs:
        if value.shape is not None:
            value.shape = ir.Shape([DIMENSION if dim == whole.shape[1] else dim for dim in value.shape])
