"""ONNX Runtime's attention with grouped heads, rotation and cache in one operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from hlap_export.errors import ExportError
from hlap_export.passes.nodes import constant, initializer, node_before, required

MICROSOFT = "com.microsoft"
COLUMNS = "mask_columns"
"""The mask's second dimension: as many columns as tokens, or one with their number."""

HEAD_DIM_MULTIPLE = 16
"""The operator's rotation works on whole vectors of so many elements."""


class GroupQueryAttention(ir.passes.InPlacePass):
    """`hlap::Attention` with its rotations and concatenated cache becomes `com.microsoft::GroupQueryAttention`.

    The operator writes new keys and values behind the past ones. Where past and present are one buffer with room for
    more (which the runtime decides), nothing is copied. How many tokens count it takes from the attention mask: each
    row's real tokens are the first ones of its cache, so padding is on the right, and the position of a token is its
    place among them. Of the mask nothing but each row's sum is read, so that one column with the sums does as well as a
    column for each token, which a step at long context would have to fetch from memory. Runs after `TabulateRotary`;
    masks and position ids are left without readers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [node for node in model.graph if (node.domain, node.op_type) == ("hlap", "Attention")]
        lengths: tuple[ir.Value, ir.Value] | None = None
        for node in attentions:
            parts = _parts(node)
            lengths = lengths or _lengths(model.graph)
            _replace(model.graph, node, parts, lengths)
        if attentions:
            model.graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, bool(attentions))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What the traced graph has around one attention.

    Attributes:
        query: [B, T, H * E], not yet rotated; key and value likewise with K heads.
        past_key: graph input [B, K, P, E]; present_key: graph output; likewise for values.
        cos: [positions, E / 2]; sin likewise.
        context: [B, T, H * E], what the heads give, side by side.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    past_key: ir.Value
    past_value: ir.Value
    present_key: ir.Value
    present_value: ir.Value
    cos: ir.Value
    sin: ir.Value
    context: ir.Value


def _parts(node: ir.Node) -> _Parts:
    query, present_key, present_value = (required(node, index) for index in range(3))
    past_key, key = _inputs(present_key, "Concat")
    past_value, value = _inputs(present_value, "Concat")
    query, cos, sin = _inputs(query, "RotaryEmbedding")
    key, key_cos, key_sin = _inputs(key, "RotaryEmbedding")
    if (cos, sin) != (key_cos, key_sin) or not cos.is_initializer():
        raise _unexpected(node, "queries and keys that are rotated alike, by tables over positions")
    (query,), (key,), (value,) = (_inputs(part, "Transpose") for part in (query, key, value))
    side_by_side = _reader(_reader(node.outputs[0], "Transpose").outputs[0], "Reshape")
    return _Parts(
        query=_flat(query),
        key=_flat(key),
        value=_flat(value),
        past_key=past_key,
        past_value=past_value,
        present_key=present_key,
        present_value=present_value,
        cos=cos,
        sin=sin,
        context=side_by_side.outputs[0],
    )


def _replace(graph: ir.Graph, node: ir.Node, parts: _Parts, lengths: tuple[ir.Value, ir.Value]) -> None:
    num_heads, head_dim = _static(parts.query, node.inputs[0], 1), _static(parts.query, node.inputs[0], 3)
    if head_dim % HEAD_DIM_MULTIPLE:
        raise ExportError(
            where=f"attention of {parts.past_key.name}",
            expected=f"heads whose size is a multiple of {HEAD_DIM_MULTIPLE}, for ONNX Runtime's rotation",
            found=f"{head_dim}",
            fix="export with --flavour portable",
        )
    window = node.attributes["sliding_window"].as_int()
    grouped = ir.node(
        "GroupQueryAttention",
        [
            *(parts.query, parts.key, parts.value, parts.past_key, parts.past_value),
            *(*lengths, parts.cos, parts.sin),
        ],
        {
            "num_heads": num_heads,
            "kv_num_heads": _static(parts.past_key, parts.past_key, 1),
            "scale": node.attributes["scale"].as_float(),
            "softcap": node.attributes["softcap"].as_float(),
            "local_window_size": window or -1,
            "do_rotary": 1,
        },
        domain=MICROSOFT,
        num_outputs=3,
    )
    grouped.metadata_props.update(node.metadata_props)
    graph.insert_before(node, grouped)
    for old, new in zip((parts.context, parts.present_key, parts.present_value), grouped.outputs, strict=True):
        new.shape, new.type = old.shape, old.type
        name = old.name
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = None, name


def _lengths(graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
    """Index of each row's last token, int32 [B], and the tokens of the longest row, an int32 scalar."""
    mask = next(value for value in graph.inputs if value.name == "attention_mask")
    assert mask.shape is not None
    mask.shape = ir.Shape([mask.shape[0], COLUMNS])
    first = graph[0]
    total = node_before(first, "ReduceSum", [mask, constant(graph, [1])], {"keepdims": 0})
    total = node_before(first, "Cast", [total], {"to": ir.DataType.INT32.value})
    one = initializer(graph, "int32.1", np.array([1], np.int32))
    return node_before(first, "Sub", [total, one]), node_before(first, "ReduceMax", [total], {"keepdims": 0})


def _inputs(value: ir.Value, op_type: str) -> tuple[ir.Value, ...]:
    """The inputs of the operator that makes `value`."""
    node = value.producer()
    if node is None or node.op_type != op_type:
        raise _unexpected(node, f"a {op_type} that makes {value.name}")
    return tuple(required(node, index) for index in range(len(node.inputs)))


def _reader(value: ir.Value, op_type: str) -> ir.Node:
    """The only reader of `value`."""
    readers = [use.node for use in value.uses()]
    if [reader.op_type for reader in readers] != [op_type]:
        raise _unexpected(value.producer(), f"{value.name} to be read by a {op_type} alone")
    return readers[0]


def _flat(heads: ir.Value) -> ir.Value:
    """[B, T, H, E] as [B, T, H * E]: what was reshaped to it, or a reshape of it (after per-head norms)."""
    producer = heads.producer()
    assert producer is not None and producer.graph is not None
    if producer.op_type == "Reshape":
        source = required(producer, 0)
        if source.shape is not None and len(source.shape) == 3:
            return source
    reader = next(iter(heads.uses())).node
    return node_before(reader, "Reshape", [heads, constant(producer.graph, [0, 0, -1])], {"allowzero": 0})


def _static(where: ir.Value, value: ir.Value | None, axis: int) -> int:
    dim = value.shape[axis] if value is not None and value.shape is not None else None
    if not isinstance(dim, int):
        raise ExportError(
            where=f"attention input {where.name}",
            expected="head counts and head size known at export",
            found=f"dimension {axis} is {dim}",
            fix="export with --flavour portable",
        )
    return dim


def _unexpected(node: ir.Node | None, expected: str) -> ExportError:
    return ExportError(
        where="flavour ort",
        expected=expected,
        found=f"{node.op_type} {node.name}" if node is not None else "a graph input or a weight",
        fix="export with --flavour portable",
    )
