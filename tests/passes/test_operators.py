"""Norms and rotations in ONNX's own operators, and the opset that has them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from hlap_export.passes.norm_operator import NormOperator
from hlap_export.passes.raise_opset import RaiseOpset
from hlap_export.passes.rotary_operator import RotaryOperator
from tests.passes.running import operators, random, run, with_weights

FLOAT32_ERROR = 1e-5
FLOAT16_ULP = 2.0**-10


@pytest.mark.parametrize(("dtype", "gain_dtype"), [("float", "float"), ("float16", "float16"), ("float16", "float")])
def test_a_norm_divides_by_the_root_mean_square_in_float32(dtype: str, gain_dtype: str) -> None:
    model = ir.from_onnx_text(f"""
        <ir_version: 12, opset_import: ["" : 24, "hlap" : 1]>
        norm ({dtype}[B, T, 12] x, {gain_dtype}[12] w) => ({dtype}[B, T, 12] y)
        {{
            y = hlap.RMSNorm <epsilon = 0.001, gain_before_rounding = {int(dtype != gain_dtype)}> (x, w)
        }}
    """)
    assert NormOperator()(model).modified
    numbers, gains = (np.float16 if name == "float16" else np.float32 for name in (dtype, gain_dtype))
    # 300 squared overflows float16.
    x, w = (300 * random(2, 3, 12)).astype(numbers), random(12).astype(gains)
    expected = w * (x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3))
    (result,) = run(model, x=x, w=w)
    assert result.dtype == numbers
    error = 2 * FLOAT16_ULP if dtype == "float16" else FLOAT32_ERROR
    assert (np.abs(result - expected) <= error * np.abs(expected) + 1e-6).all()
    assert operators(model).count("Cast") == (2 if dtype != gain_dtype else 0)


def test_rotary_turns_pairs_half_a_head_apart_by_the_angle_of_their_position() -> None:
    angles = random(10, 4)
    model = with_weights(
        """
        <ir_version: 12, opset_import: ["" : 24, "hlap" : 1]>
        rotary (int64[B, T] position_ids, float[B, 3, T, 8] q, float[10, 4] cos, float[10, 4] sin)
            => (float[B, 3, T, 8] turned)
        {
            turned = hlap.RotaryEmbedding (q, cos, sin)
        }
        """,
        cos=np.cos(angles),
        sin=np.sin(angles),
    )
    assert RotaryOperator()(model).modified
    q, positions = random(2, 3, 5, 8), np.array([[0, 1, 2, 3, 4], [9, 3, 3, 8, 0]])
    turned = (q[..., :4] + 1j * q[..., 4:]) * np.exp(1j * angles[positions])[:, None]  # a rotation is a complex product
    (result,) = run(model, position_ids=positions, q=q)
    assert np.abs(result - np.concatenate([turned.real, turned.imag], -1)).max() <= FLOAT32_ERROR


def test_an_operator_that_a_later_opset_may_have_changed_is_not_renumbered() -> None:
    text = '<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) {{ y = {} (x) }}'
    known = ir.from_onnx_text(text.format("Exp"))
    raising = RaiseOpset(24, ir_version=12, new=("TensorScatter",))
    raising(known)
    assert (known.opset_imports[""], known.ir_version) == (24, 12)
    with pytest.raises(ir.passes.PassError) as raised:
        ir.passes.Sequential(raising)(ir.from_onnx_text(text.format("Mish")))
    assert "Mish" in str(raised.value.__cause__)
