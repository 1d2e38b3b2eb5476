"""Compute the logits of the tokens that a runtime names, and of no others."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.passes.nodes import constant, node_before, only_reader
from hlap_export.passes.per_token import PerToken

SELECTED = "logits_indices"
DIMENSION = "num_logits"


class SelectTokens(ir.passes.InPlacePass):
    """Add the input `logits_indices`, int64 [batch, num_logits]: for each row, which new tokens have logits.

    As `KeepLastTokens`, all others are dropped right above the last attention. Rows name their tokens one by one,
    because rows of different lengths end at different ones, and because the number of logits is then a dimension like
    any other: a compiler needs no numbers from the input to know its shapes.

    Runs while attention is one node.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        attentions = [node for node in graph if (node.domain, node.op_type) == ("hlap", "Attention")]
        if not attentions:
            return ir.passes.PassResult(model, False)
        # Heads are put side by side again: [B, H, T, E], [B, T, H, E], [B, T, H * E].
        part = PerToken(graph, [only_reader(only_reader(node, "Transpose"), "Reshape") for node in attentions])
        rows = _indices(graph)
        vectors: ir.Value | None = None
        for value, first in part.entering.items():
            vectors = vectors or node_before(first, "Unsqueeze", [rows, constant(graph, [2])])
            part.read_instead(value, node_before(first, "GatherND", [value, vectors], {"batch_dims": 1}, like=value))
        part.rename_sequence(DIMENSION)
        return ir.passes.PassResult(model, True)


def _indices(graph: ir.Graph) -> ir.Value:
    tokens = next(value for value in graph.inputs if value.name == "input_ids")
    assert tokens.shape is not None
    shape = ir.Shape([tokens.shape[0], DIMENSION])
    value = ir.Value(name=SELECTED, type=ir.TensorType(ir.DataType.INT64), shape=shape)
    caches = (at for at, other in enumerate(graph.inputs) if (other.name or "").startswith("past_key_values."))
    graph.inputs.insert(next(caches), value)
    return value
