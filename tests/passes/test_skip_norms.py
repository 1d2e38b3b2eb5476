"""An addition and the norm after it are one operator that computes both."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from hlap_export.passes.name_nodes import NameNodes
from hlap_export.passes.skip_norms import SkipNorms
from tests.passes.running import operators, random, run

STREAM = """
<ir_version: 8, opset_import: ["" : 18, "hlap" : 1]>
layer (float[B, T, 8] a, float[B, T, 8] b, float[B, T, 8] c, float[8] gain)
    => (float[B, T, 8] normed, float[B, T, 8] next)
{
    stream = Add (a, b)
    normed = hlap.RMSNorm <epsilon = 0.1, gain_before_rounding = 0> (stream, gain)
    next = Add (stream, c)
}
"""


def typed(text: str) -> ir.Model:
    """The graph with the shape of its sum, as the tracer knows it."""
    model = ir.from_onnx_text(text)
    for node in model.graph:
        model_input = model.graph.inputs[0]
        node.outputs[0].shape, node.outputs[0].type = model_input.shape, model_input.type
    return model


def test_the_norm_and_the_sum_are_what_they_were() -> None:
    model = typed(STREAM)
    assert SkipNorms()(model).modified
    assert operators(model) == ["SkipSimplifiedLayerNormalization", "Add"]
    a, b, c, gain = random(2, 3, 8), random(2, 3, 8), random(2, 3, 8), random(8)
    normed, following = run(model, a=a, b=b, c=c, gain=gain)
    stream = a + b
    expected = gain * stream / np.sqrt((stream**2).mean(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(normed, expected, atol=1e-5)
    np.testing.assert_allclose(following, stream + c, atol=1e-6)


def test_what_nothing_reads_is_left_out_also_once_nodes_are_named() -> None:
    model = typed(STREAM)
    SkipNorms()(model)
    NameNodes(wrapper="")(model)
    fused = next(node for node in ir.to_proto(model).graph.node if node.op_type.startswith("Skip"))
    assert [index for index, name in enumerate(fused.output) if not name] == [1, 2]


def with_bias(side: str, also_read: bool = False) -> ir.Model:
    """The graph whose `side` of the sum is a projection's output with its bias, a vector of the graph's own."""
    biased = STREAM.replace("{\n    stream", f"{{\n    biased = Add ({side}, bias)\n    stream", 1)
    biased = biased.replace("stream = Add (a, b)", f"stream = Add ({'biased, b' if side == 'a' else 'a, biased'})")
    biased = biased.replace("Add (stream, c)", "Add (stream, biased)") if also_read else biased
    model = ir.from_onnx_text(biased.replace("float[8] gain", "float[8] gain, float[8] bias"))
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = model.graph.inputs[0].shape, model.graph.inputs[0].type
    bias = next(value for value in model.graph.inputs if value.name == "bias")
    model.graph.inputs.remove(bias)
    bias.const_value = ir.tensor(np.arange(8, dtype=np.float32), name="bias")
    model.graph.register_initializer(bias)
    return model


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_projections_bias_is_added_by_the_norm(side: str) -> None:
    model = with_bias(side)
    assert SkipNorms()(model).modified
    assert operators(model) == ["SkipSimplifiedLayerNormalization", "Add"]
    a, b, c, gain = random(2, 3, 8), random(2, 3, 8), random(2, 3, 8), random(8)
    normed, following = run(model, a=a, b=b, c=c, gain=gain)
    stream = a + b + np.arange(8, dtype=np.float32)
    expected = gain * stream / np.sqrt((stream**2).mean(-1, keepdims=True) + 0.1)
    np.testing.assert_allclose(normed, expected, atol=1e-5)
    np.testing.assert_allclose(following, stream + c, atol=1e-5)


def test_a_biased_value_that_something_else_reads_is_left() -> None:
    model = with_bias("b", also_read=True)
    assert SkipNorms()(model).modified
    assert sorted(operators(model)) == ["Add", "Add", "SkipSimplifiedLayerNormalization"]


@pytest.mark.parametrize(
    "text",
    [
        STREAM.replace("stream = Add (a, b)", "stream = Mul (a, b)"),
        STREAM.replace("float[B, T, 8] b", "float[8] b"),
        STREAM.replace("float[8] gain", "float16[8] gain"),
    ],
    ids=["of no sum", "of a sum with a vector", "with a gain of another dtype"],
)
def test_a_norm_that_the_operator_does_not_mean_is_left(text: str) -> None:
    assert not SkipNorms()(typed(text)).modified
