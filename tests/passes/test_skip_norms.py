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


@pytest.mark.parametrize(
    ("text", "left_out"),
    [(STREAM, [1, 2]), (STREAM.replace("Add (stream, c)", "Identity (c)"), [1, 2, 3])],
    ids=["the sum is read", "the sum isn't read"],
)
def test_what_nothing_reads_is_left_out_also_once_nodes_are_named(text: str, left_out: list[int]) -> None:
    model = typed(text)
    SkipNorms()(model)
    NameNodes(wrapper="")(model)
    fused = next(node for node in ir.to_proto(model).graph.node if node.op_type.startswith("Skip"))
    assert [index for index, name in enumerate(fused.output) if not name] == left_out


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
