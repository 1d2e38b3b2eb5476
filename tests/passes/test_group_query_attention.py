"""The traced attention with its cache and rotations becomes one operator that computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from hlap_export.errors import ExportError
from hlap_export.passes.drop_unread_inputs import DropUnreadInputs
from hlap_export.passes.group_query_attention import GroupQueryAttention
from hlap_export.passes.tabulate_rotary import TabulateRotary
from tests.passes.running import operators, random, run, with_weights

NUM_POSITIONS, PAST, NEW = 16, 5, 3
FREQUENCIES = (10000.0 ** -(np.arange(8) / 8)).astype(np.float32)

# 4 query heads, 2 KV heads of 16 elements: what a tracer makes of one layer's attention.
TRACED = """
<ir_version: 8, opset_import: ["" : 18, "hlap" : 1]>
attention (float[B, T, 64] q, float[B, T, 32] k, float[B, T, 32] v, int64[B, S] attention_mask,
           int64[B, T] position_ids, float[8] frequencies, float[B, 1, T, S] mask,
           float[B, 2, P, 16] past_key, float[B, 2, P, 16] past_value, int64[4] heads, int64[4] kv_heads, int64[3] flat,
           int64[1] last)
    => (float[B, T, 64] y, float[B, 2, S, 16] present_key, float[B, 2, S, 16] present_value)
{
    ids = Unsqueeze (position_ids, last)
    ids_float = Cast <to = 1> (ids)
    half = Mul (ids_float, frequencies)
    angles = Concat <axis = -1> (half, half)
    cos = Cos (angles)
    sin = Sin (angles)
    q4 = Reshape (q, heads)
    qh = Transpose <perm = [0, 2, 1, 3]> (q4)
    k4 = Reshape (k, kv_heads)
    kh = Transpose <perm = [0, 2, 1, 3]> (k4)
    v4 = Reshape (v, kv_heads)
    vh = Transpose <perm = [0, 2, 1, 3]> (v4)
    qr = hlap.RotaryEmbedding (qh, cos, sin)
    kr = hlap.RotaryEmbedding (kh, cos, sin)
    present_key = Concat <axis = -2> (past_key, kr)
    present_value = Concat <axis = -2> (past_value, vh)
    context = hlap.Attention <scale = 0.3, softcap = %s, sliding_window = %s> (qr, present_key, present_value, mask)
    turned = Transpose <perm = [0, 2, 1, 3]> (context)
    y = Reshape (turned, flat)
}
"""


def traced(softcap: float = 0.0, window: int = 0, head_dim: int = 16) -> ir.Model:
    text = (TRACED % (softcap, window)).replace(", 16]", f", {head_dim}]")
    model = with_weights(
        text,
        frequencies=FREQUENCIES,
        heads=np.array([0, 0, 4, head_dim]),
        kv_heads=np.array([0, 0, 2, head_dim]),
        flat=np.array([0, 0, -1]),
        last=np.array([-1]),
    )
    for node in model.graph:  # the shapes that the tracer knows
        shape = {
            "Reshape": ("B", "T", 4 if node.name == "q4" else 2, head_dim),
            "Attention": ("B", 4, "T", head_dim),
            "RotaryEmbedding": ("B", 4 if node.outputs[0].name == "qr" else 2, "T", head_dim),
        }.get(node.op_type)
        if shape is not None and node.outputs[0].name != "y":
            node.outputs[0].shape = ir.Shape(shape)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return model


def lowered(model: ir.Model) -> ir.Model:
    assert TabulateRotary(NUM_POSITIONS)(model).modified
    assert GroupQueryAttention()(model).modified
    for leftover in (common.RemoveUnusedNodesPass(), DropUnreadInputs()):
        leftover(model)
    return model


def rotated(x_BHTE: np.ndarray[Any, Any], first: int) -> np.ndarray[Any, Any]:
    """Each pair (i, i + 8) of a head turned by position * frequency i: complex multiplication."""
    positions = np.arange(first, first + x_BHTE.shape[2])
    turn = np.exp(1j * np.outer(positions, FREQUENCIES))
    pairs = (x_BHTE[..., :8] + 1j * x_BHTE[..., 8:]) * turn
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def attention(q: Any, keys: Any, values: Any, softcap: float, window: int) -> np.ndarray[Any, Any]:
    """Each query's weighted mean of values, one query at a time."""
    batch, heads, new, size = q.shape
    total = keys.shape[2]
    result = np.zeros((batch, new, heads, size))
    for row, head, at in np.ndindex(batch, heads, new):
        last = total - new + at
        first = max(0, last - window + 1) if window else 0
        scores = 0.3 * keys[row, head // 2, first : last + 1] @ q[row, head, at]
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        weights = np.exp(scores - scores.max())
        result[row, at, head] = weights @ values[row, head // 2, first : last + 1] / weights.sum()
    return result.reshape(batch, new, heads * size)


@pytest.mark.parametrize("mask", [np.ones((1, PAST + NEW), np.int64), np.array([[PAST + NEW]])], ids=["ones", "sum"])
@pytest.mark.parametrize(("softcap", "window"), [(0.0, 0), (2.5, 0), (0.0, 4), (2.5, 4)])
def test_new_tokens_after_cached_ones_see_what_the_mask_would_show(softcap: float, window: int, mask: Any) -> None:
    model = lowered(traced(softcap, window))
    assert operators(model).count("GroupQueryAttention") == 1
    assert [value.name for value in model.graph.inputs] == ["q", "k", "v", "attention_mask", "past_key", "past_value"]

    q, k, v = random(1, NEW, 64), random(1, NEW, 32), random(1, NEW, 32)
    past_key, past_value = random(1, 2, PAST, 16), random(1, 2, PAST, 16)
    heads = [part.reshape(1, NEW, -1, 16).swapaxes(1, 2) for part in (q, k, v)]
    keys = np.concatenate([past_key, rotated(heads[1], PAST)], axis=2)
    values = np.concatenate([past_value, heads[2]], axis=2)
    expected = attention(rotated(heads[0], PAST), keys, values, softcap, window)

    y, present_key, present_value = run(
        model, q=q, k=k, v=v, attention_mask=mask, past_key=past_key, past_value=past_value
    )
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(present_key, keys, atol=1e-5)
    np.testing.assert_array_equal(present_value, values.astype(np.float32))


def test_the_tables_hold_one_angle_for_every_position_and_pair() -> None:
    model = lowered(traced())
    table = model.graph.initializers["rotary.cos"].const_value.numpy()
    np.testing.assert_allclose(table, np.cos(np.outer(np.arange(NUM_POSITIONS), FREQUENCIES)), atol=1e-6)


def test_heads_of_a_size_that_the_operator_cannot_rotate_are_refused_with_the_other_flavour() -> None:
    model = traced(head_dim=12)
    for node in model.graph:
        if node.op_type == "RotaryEmbedding":
            for index in (1, 2):
                table = ir.Value(name=f"table{index}", shape=ir.Shape((NUM_POSITIONS, 6)))
                table.const_value = ir.Tensor(np.zeros((NUM_POSITIONS, 6), np.float32), name=table.name)
                model.graph.initializers.setdefault(table.name, table)
                node.replace_input_with(index, model.graph.initializers[table.name])
    with pytest.raises(ExportError, match=r"multiple of 16.*portable"):
        GroupQueryAttention()(model)


def test_keys_that_are_not_rotated_as_queries_are_refused() -> None:
    text = (TRACED % (0.0, 0)).replace("RotaryEmbedding (kh, cos, sin)", "RotaryEmbedding (kh, sin, cos)")
    model = ir.from_onnx_text(text)
    with pytest.raises(ExportError, match="rotated alike"):
        GroupQueryAttention()(model)
