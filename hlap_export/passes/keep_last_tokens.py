"""Compute the logits of the last tokens alone where that is all that is asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hlap_export.passes.nodes import constant, node_before
from hlap_export.passes.per_token import PerToken

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
        part = PerToken(graph, attentions)
        start: ir.Value | None = None
        for value, first in part.entering.items():
            start = start or node_before(first, "Neg", [_number_kept(graph)])
            end, axis = constant(graph, [LAST_INDEX]), constant(graph, [1])
            part.read_instead(value, node_before(first, "Slice", [value, start, end, axis], like=value))
        part.rename_sequence(DIMENSION)
        return ir.passes.PassResult(model, True)


def _number_kept(graph: ir.Graph) -> ir.Value:
    tensor = ir.tensor(np.zeros(1, np.int64), name=NUM_KEPT)
    value = ir.Value(name=NUM_KEPT, type=ir.TensorType(tensor.dtype), shape=ir.Shape([1]), const_value=tensor)
    graph.inputs.append(value)
    graph.register_initializer(value)
    return value
