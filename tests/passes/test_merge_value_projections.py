"""Two matrices become their product where that is smaller, and only there."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from hlap_export.passes.merge_value_projections import MergeValueProjections
from tests.passes.running import operators, random, run, with_weights

PAIR = """
<ir_version: 8, opset_import: ["" : 18]>
layer (float[B, T, 12] x, float[12, %(kv)s] v_proj, float[%(kv)s, 12] o_proj) => (float[B, T, 12] y)
{
    values = MatMul (x, v_proj)
    y = MatMul (values, o_proj)
}
"""


def pair(kv: int, text: str = PAIR) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    values, outputs = random(12, kv), random(kv, 12)
    return with_weights(text % {"kv": kv}, v_proj=values, o_proj=outputs), values, outputs


def test_the_product_is_computed_in_float64_and_takes_the_pairs_place() -> None:
    model, values, outputs = pair(kv=7)
    assert MergeValueProjections()(model).modified
    assert operators(model) == ["MatMul"]
    merged = model.graph.initializers["vo_proj"].const_value.numpy()
    expected = (values.astype(np.float64) @ outputs.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(merged, expected)
    x = random(2, 3, 12)
    np.testing.assert_allclose(run(model, x=x)[0], x @ values @ outputs, atol=1e-4)


@pytest.mark.parametrize("kv", [1, 6])
def test_a_pair_that_is_no_larger_than_its_product_stays(kv: int) -> None:
    assert not MergeValueProjections()(pair(kv)[0]).modified


@pytest.mark.parametrize(
    ("change", "by"),
    [("(float[B, T, 12] y)", "(float[B, T, 12] y, float[B, T, 7] values)"), ("MatMul (values,", "MatMul (bent,")],
    ids=["values that something else reads", "something between the two"],
)
def test_a_pair_that_is_no_pair_stays(change: str, by: str) -> None:
    text = PAIR.replace(change, by)
    if "bent" in by:
        text = text.replace("y =", "bent = Tanh (values)\n    y =")
    assert not MergeValueProjections()(pair(7, text)[0]).modified
