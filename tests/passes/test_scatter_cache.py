"""A cache that grows becomes one that is written in place, and the mask follows from where."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes import common

from hlap_export.passes.attention_operator import FORMS, AttentionOperator
from hlap_export.passes.drop_unread_inputs import DropUnreadInputs
from hlap_export.passes.lower_attention import LowerAttention
from hlap_export.passes.scatter_cache import ScatterCache
from tests.passes.running import operators, random, run

FLOAT32_ERROR = 1e-5
FLOAT16_ERROR = 4e-3
CAPACITY, WINDOW = 9, 3

# Two layers, one with a window; its ids say how many tokens there are, its queries and keys come in as they are.
TRACED = """
<ir_version: 12, opset_import: ["" : 24, "hlap" : 1]>
layers (int64[B, T] input_ids, int64[B, S] attention_mask, int64[B, T] position_ids, {dtype}[B, 4, T, 16] q,
        {dtype}[B, 2, T, 16] k, {dtype}[B, 2, T, 16] v,
        {dtype}[B, 2, P, 16] pk0, {dtype}[B, 2, P, 16] pv0, {dtype}[B, 2, P, 16] pk1, {dtype}[B, 2, P, 16] pv1)
    => ({dtype}[B, 4, T, 16] near, {dtype}[B, 4, T, 16] far, int64[B, T] positions,
        {dtype}[B, 2, S, 16] "present.0.key", {dtype}[B, 2, S, 16] "present.0.value",
        {dtype}[B, 2, S, 16] "present.1.key", {dtype}[B, 2, S, 16] "present.1.value")
{{
    "present.0.key" = Concat <axis = -2> (pk0, k)
    "present.0.value" = Concat <axis = -2> (pv0, v)
    "present.1.key" = Concat <axis = -2> (pk1, k)
    "present.1.value" = Concat <axis = -2> (pv1, v)
    mask = Cast <to = 9> (attention_mask)
    near = hlap.Attention <scale = 0.3, softcap = 0.0, sliding_window = 3>
           (q, "present.0.key", "present.0.value", mask)
    far = hlap.Attention <scale = 0.3, softcap = {softcap}, sliding_window = 0>
          (q, "present.1.key", "present.1.value", mask)
    positions = Identity (position_ids)
}}
"""


def in_place(dtype: str = "float", softcap: float = 0.0) -> ir.Model:
    model = ir.from_onnx_text(TRACED.format(dtype=dtype, softcap=softcap))
    assert ScatterCache()(model).modified
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    for node in attentions:
        node.outputs[0].type, node.outputs[0].shape = model.graph.inputs[4].type, model.graph.inputs[4].shape
    return model


def finished(model: ir.Model) -> ir.Model:
    for declared in (AttentionOperator(), LowerAttention(), common.RemoveUnusedNodesPass(), DropUnreadInputs()):
        declared(model)
    return model


def visible(written: int, token: int, window: int) -> range:
    """Slots that a token sees: its own and those before it, in a window so many."""
    last = written + token
    return range(max(0, last - window + 1) if window else 0, last + 1)


def attended(q: Any, keys: Any, values: Any, written: list[int], window: int) -> Any:
    """Attention in float64, token by token, over the slots it may see."""
    q, keys, values = (array.astype(np.float64) for array in (q, keys, values))
    context = np.zeros_like(q)
    for row, head, token in np.ndindex(q.shape[:3]):
        slots = visible(written[row], token, window)
        scores = 0.3 * keys[row, head // 2, slots] @ q[row, head, token]
        weights = np.exp(scores - scores.max())
        context[row, head, token] = weights / weights.sum() @ values[row, head // 2, slots]
    return context


@pytest.mark.parametrize(("dtype", "bound"), [("float", FLOAT32_ERROR), ("float16", FLOAT16_ERROR)])
@pytest.mark.parametrize(("new", "written"), [(4, [0, 0]), (3, [5, 2]), (1, [8, 0])])
def test_rows_of_different_lengths_see_their_own_tokens_and_no_others(
    new: int, written: list[int], dtype: str, bound: float
) -> None:
    numbers = np.float16 if dtype == "float16" else np.float32
    q, k, v = (random(2, heads, new, 16).astype(numbers) for heads in (4, 2, 2))
    caches = {name: random(2, 2, CAPACITY, 16).astype(numbers) for name in ("pk0", "pv0", "pk1", "pv1")}
    feeds = {"input_ids": np.zeros((2, new), np.int64), "write_indices": np.array(written), "q": q, "k": k, "v": v}
    near, far, positions, *presents = run(finished(in_place(dtype)), **feeds, **caches)

    expected = {name: cache.copy() for name, cache in caches.items()}
    for row, start in enumerate(written):
        for name, cache in expected.items():
            cache[row, :, start : start + new] = (k if name.startswith("pk") else v)[row]
    for present, cache in zip(presents, expected.values(), strict=True):
        np.testing.assert_array_equal(present, cache)
    np.testing.assert_array_equal(positions, np.array(written)[:, None] + np.arange(new))
    for context, layer, window in ((near, 0, WINDOW), (far, 1, 0)):
        wanted = attended(q, expected[f"pk{layer}"], expected[f"pv{layer}"], written, window)
        assert np.abs(context - wanted).max() <= bound


def test_masks_are_made_once_for_each_window() -> None:
    model = in_place()
    assert operators(model).count("LessOrEqual") == 2
    assert operators(model).count("Range") == 2
    first, second = (node.inputs[3] for node in model.graph if node.op_type == "Attention")
    assert first is not second


def test_the_operator_is_taken_where_there_is_a_kernel_and_plain_products_elsewhere() -> None:
    model = finished(in_place("float16", softcap=5.0))
    assert operators(model).count("Attention") == 1
    assert operators(model).count("Softmax") == operators(model).count("Tanh") == 1
    assert '"form": "plain"' in model.metadata_props[FORMS]
    assert not [node for node in finished(in_place("float")).graph if node.op_type == "Attention"]


def test_a_hidden_score_is_finite_in_half_precision() -> None:
    model = finished(in_place("float16", softcap=5.0))
    hidden = next(value for name, value in model.graph.initializers.items() if name == "attention.hidden")
    assert np.isfinite(hidden.const_value.numpy()) and hidden.const_value.numpy() < -6e4
