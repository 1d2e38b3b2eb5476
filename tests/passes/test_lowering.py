"""Each lowering computes what the operator means, in plain ONNX."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from hlap_export.passes.lower_attention import LowerAttention
from hlap_export.passes.lower_norms import LowerNorms
from hlap_export.passes.lower_rotary import LowerRotary

# float32 sums in another order: a few units in the last place of numbers around 1.
FLOAT32_ERROR = 2e-6
# The runtime fuses the norm and may round its last step otherwise: one unit in the last place.
FLOAT16_ULP = 2**-10
RANDOM = np.random.default_rng(5)

ATTENTION = """
<ir_version: 10, opset_import: ["" : 18, "hlap" : 1]>
attention (float[B, 6, T, 8] q, float[B, 2, S, 8] k, float[B, 2, S, 8] v, float[B, 1, T, S] mask)
    => (float[B, 6, T, 8] y)
{
    y = hlap.Attention <scale = 0.3, softcap = %s, sliding_window = 0> (q, k, v, mask)
}
"""


def random(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def run(model: ir.Model, **feeds: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    model.opset_imports.pop("hlap", None)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("softcap", [0.0, 2.5])
def test_grouped_attention_equals_the_one_with_repeated_keys_and_values(softcap: float) -> None:
    model = ir.from_onnx_text(ATTENTION % softcap)
    assert LowerAttention()(model).modified
    q, k, v = random(2, 6, 3, 8), random(2, 2, 5, 8), random(2, 2, 5, 8)
    mask = np.where(np.tri(3, 5, 2, dtype=bool), 0, -1e4).astype(np.float32)[None, None].repeat(2, 0)

    keys, values = k.repeat(3, axis=1), v.repeat(3, axis=1)
    scores = 0.3 * q @ keys.swapaxes(2, 3)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores + mask)
    expected = weights / weights.sum(-1, keepdims=True) @ values

    assert np.abs(run(model, q=q, k=k, v=v, mask=mask) - expected).max() <= FLOAT32_ERROR
    assert operators(model).count("Tanh") == bool(softcap)


def test_attention_without_groups_needs_no_reshape() -> None:
    model = ir.from_onnx_text((ATTENTION % 0.0).replace("[B, 2,", "[B, 6,"))
    LowerAttention()(model)
    assert "Reshape" not in operators(model)


def test_half_precision_attention_takes_its_softmax_in_float32() -> None:
    model = ir.from_onnx_text((ATTENTION % 0.0).replace("float[", "float16["))
    LowerAttention()(model)
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    producer = softmax.inputs[0].producer()
    assert producer.op_type == "Cast"
    assert producer.attributes["to"].as_int() == ir.DataType.FLOAT
    assert operators(model).count("Cast") == 2


def norm(dtype: str, gain_dtype: str, gain_before_rounding: int) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 18, "hlap" : 1]>
        norm ({dtype}[B, T, 12] x, {gain_dtype}[12] w) => ({dtype}[B, T, 12] y)
        {{
            y = hlap.RMSNorm <epsilon = 0.001, gain_before_rounding = {gain_before_rounding}> (x, w)
        }}
    """)


def test_norm_divides_by_the_root_mean_square() -> None:
    model = norm("float", "float", 0)
    assert LowerNorms()(model).modified
    x, w = random(2, 3, 12), random(12)
    expected = w * x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3)
    assert np.abs(run(model, x=x, w=w) - expected).max() <= FLOAT32_ERROR
    assert "Cast" not in operators(model)


def test_a_half_precision_norm_rounds_before_or_after_the_gain_as_the_family_does() -> None:
    before, after = norm("float16", "float16", 0), norm("float16", "float", 1)
    LowerNorms()(before)
    LowerNorms()(after)
    assert operators(before)[-2:] == ["Cast", "Mul"]
    assert operators(after)[-2:] == ["Mul", "Cast"]
    x, w = (10 * random(1, 2, 12)).astype(np.float16), random(12).astype(np.float16)
    normed = x.astype(np.float32) / np.sqrt((x.astype(np.float32) ** 2).mean(-1, keepdims=True) + np.float32(1e-3))
    for result, expected in (
        (run(before, x=x, w=w), w * normed.astype(np.float16)),
        (run(after, x=x, w=w.astype(np.float32)), (w * normed).astype(np.float16)),
    ):
        assert result.dtype == np.float16
        assert (np.abs(result - expected) <= FLOAT16_ULP * np.abs(expected)).all()


def test_rotary_turns_pairs_half_a_head_apart_and_unsqueezes_the_angles_once() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 18, "hlap" : 1]>
        rotary (float[B, 3, T, 8] q, float[B, 2, T, 8] k, float[B, T, 8] cos, float[B, T, 8] sin)
            => (float[B, 3, T, 8] turned_q, float[B, 2, T, 8] turned_k)
        {
            turned_q = hlap.RotaryEmbedding (q, cos, sin)
            turned_k = hlap.RotaryEmbedding (k, cos, sin)
        }
    """)
    assert LowerRotary()(model).modified
    q, k, angle = random(2, 3, 5, 8), random(2, 2, 5, 8), random(2, 5, 4)
    turned = (q[..., :4] + 1j * q[..., 4:]) * np.exp(1j * angle)[:, None]  # a rotation is a complex product
    full = np.concatenate([angle, angle], -1)
    result = run(model, q=q, k=k, cos=np.cos(full), sin=np.sin(full))
    assert np.abs(result - np.concatenate([turned.real, turned.imag], -1)).max() <= FLOAT32_ERROR
    assert operators(model).count("Unsqueeze") == 2


@pytest.mark.parametrize("lowering", [LowerAttention(), LowerNorms(), LowerRotary()])
def test_a_graph_without_the_operator_is_left_alone(lowering: ir.passes.PassBase) -> None:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) { y = Exp(x) }')
    assert not lowering(model).modified
    assert operators(model) == ["Exp"]
