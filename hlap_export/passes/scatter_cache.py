"""A cache of fixed capacity that is written in place, in ONNX's own operators."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hlap_export.passes.nodes import constant, initializer, node_before, required

WRITE_INDICES = "write_indices"


class ScatterCache(ir.passes.InPlacePass):
    """Caches that grow by `Concat` become buffers that `TensorScatter` writes to, [batch, K, capacity, E].

    The input `write_indices`, int64 [batch], says how many tokens a row's cache holds. New ones are written from there
    on: token t of a step is at position and in slot `write_indices + t`, and sees the slots up to its own (in a sliding
    window those alone that are close enough). So rows may have different lengths, and a row with fewer new tokens than
    others is padded on the right: what that writes lies behind its length, where nobody looks before it is overwritten.

    The mask is explicit, true where a slot is seen, rather than left to an operator's idea of causality: ONNX's
    `is_causal` aligns queries with the first slots, and what a compiler could be told after parsing (align with the
    last ones, so many lengths) has neither windows nor rows that end before others. With TensorRT-RTX 1.7.1, the same
    kernels are taken with either. The price is at most what the unseen slots take to be read: all of a capacity of
    4,096 is 3% of an 8B model's weights in half precision.

    Position ids and attention mask are left without readers. Runs before attention is lowered.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "Attention")]
        if not attentions:
            return ir.passes.PassResult(model, False)
        writes = _write_indices(model.graph)
        for node in attentions:
            _scatter(required(node, 1), writes)
            _scatter(required(node, 2), writes)
        slots = _Slots(model.graph, writes, required(attentions[0], 1))
        for node in attentions:
            node.replace_input_with(3, slots.visible(node.attributes["sliding_window"].as_int()))
        position_ids = next(value for value in model.graph.inputs if value.name == "position_ids")
        ir.convenience.replace_all_uses_with(position_ids, slots.positions)
        return ir.passes.PassResult(model, True)


class _Slots:
    """Where tokens are, and which ones they see; computed once, at the top of the graph.

    Attributes:
        positions: of the new tokens, [B, T].
    """

    def __init__(self, graph: ir.Graph, writes: ir.Value, present: ir.Value) -> None:
        producer = present.producer()
        assert producer is not None
        self._graph, self._first = graph, graph[0]
        cache, tokens = required(producer, 0), next(value for value in graph.inputs if value.name == "input_ids")
        assert tokens.shape is not None and cache.shape is not None
        self._mask_shape = ir.Shape([tokens.shape[0], 1, tokens.shape[1], cache.shape[2]])
        offsets_T = self._count(tokens, 1)
        column = node_before(self._first, "Unsqueeze", [writes, constant(graph, [1])])
        self.positions = node_before(self._first, "Add", [column, offsets_T], like=tokens)
        self._slots_C = self._count(cache, 2)
        self._positions_B1T1 = node_before(self._first, "Unsqueeze", [self.positions, constant(graph, [1, 3])])
        self._masks: dict[int, ir.Value] = {}

    def visible(self, window: int) -> ir.Value:
        """[B, 1, T, C], true where the token sees the slot; `window` 0 is none."""
        if window not in self._masks:
            visible = node_before(self._first, "LessOrEqual", [self._slots_C, self._positions_B1T1])
            if window:
                size = initializer(self._graph, f"window.{window}", np.array(window, np.int64))
                before = node_before(self._first, "Sub", [self._positions_B1T1, size])
                near = node_before(self._first, "Greater", [self._slots_C, before])
                visible = node_before(self._first, "And", [visible, near])
            visible.type, visible.shape = ir.TensorType(ir.DataType.BOOL), self._mask_shape
            self._masks[window] = visible
        return self._masks[window]

    def _count(self, value: ir.Value, axis: int) -> ir.Value:
        """0, 1, 2, ... as many as `value` is long."""
        zero, one = (initializer(self._graph, f"count.{name}", np.array(name, np.int64)) for name in (0, 1))
        length = node_before(self._first, "Shape", [value], {"start": axis, "end": axis + 1})
        numbers = node_before(self._first, "Range", [zero, node_before(self._first, "Squeeze", [length]), one])
        assert value.shape is not None
        numbers.type, numbers.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([value.shape[axis]])
        return numbers


def _write_indices(graph: ir.Graph) -> ir.Value:
    tokens = next(value for value in graph.inputs if value.name == "input_ids")
    assert tokens.shape is not None
    value = ir.Value(name=WRITE_INDICES, type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([tokens.shape[0]]))
    graph.inputs.insert(1, value)
    return value


def _scatter(present: ir.Value, writes: ir.Value) -> None:
    """`Concat(past, new)` becomes `TensorScatter(past, new, writes)`, of the past's shape."""
    concat = present.producer()
    assert concat is not None and concat.op_type == "Concat" and concat.graph is not None
    past, new = required(concat, 0), required(concat, 1)
    updated = node_before(concat, "TensorScatter", [past, new, writes], {"axis": -2}, like=past)
    name = present.name
    ir.convenience.replace_all_uses_with(present, updated, replace_graph_outputs=True)
    concat.graph.remove(concat, safe=True)
    updated.name = name
