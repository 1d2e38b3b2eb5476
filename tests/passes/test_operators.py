"""Norms and rotations in ONNX's own operators, and the opset that has them."""

from __future__ import annotations

import numpy as np
import onnx.defs
import onnx_ir as ir
import pytest
import torch

from hlap_export.errors import ExportError
from hlap_export.passes.gelu_operator import GeluOperator
from hlap_export.passes.norm_operator import NormOperator
from hlap_export.passes.raise_opset import WIDENED, RaiseOpset
from hlap_export.passes.rotary_operator import RotaryOperator
from tests.passes.running import operators, random, run, with_weights
from tests.passes.test_fast_gelu import ACTIVATION

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


def test_torchs_gelu_is_one_operator_that_computes_it() -> None:
    model = ir.from_onnx_text(ACTIVATION)
    assert GeluOperator()(model).modified
    RaiseOpset(24, ir_version=12)(model)
    assert operators(model) == ["Gelu", "Mul"]
    x, up = 3 * random(2, 3, 8), random(2, 3, 8)
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy() * up
    np.testing.assert_allclose(run(model, x=x, up=up)[0], expected, atol=1e-6)


GRAPH = '<ir_version: 8, opset_import: ["" : 18]> g (float[N] x) => (float[N] y) {{ y = {} (x) }}'


@pytest.mark.parametrize("unchanged", ["Exp", "Relu", "Softplus"])
def test_a_graph_whose_operators_stay_what_they_are_is_renumbered(unchanged: str) -> None:
    model = ir.from_onnx_text(GRAPH.format(unchanged))
    RaiseOpset(24, ir_version=12)(model)
    assert (model.opset_imports[""], model.ir_version) == (24, 12)


def test_an_operator_that_a_later_opset_defined_anew_is_refused() -> None:
    # Opset 21 gave its scale another shape.
    changed = GRAPH.format("GroupNormalization <num_groups = 1, epsilon = 0.1>").replace("(x) }", "(x, x, x) }")
    with pytest.raises(ExportError, match=r"GroupNormalization.*portable"):
        RaiseOpset(24, ir_version=12)(ir.from_onnx_text(changed))


@pytest.mark.parametrize("name", sorted(WIDENED))
def test_what_is_said_to_have_more_types_alone_has_no_other_inputs_or_outputs(name: str) -> None:
    old, new = (onnx.defs.get_schema(name, opset) for opset in (18, 24))
    for parts in ("inputs", "outputs"):
        assert [part.name for part in getattr(old, parts)] == [part.name for part in getattr(new, parts)]
    assert set(new.attributes) - set(old.attributes) <= {"saturate", "round_mode"}
    for type_variable in old.type_constraints:
        widened = next(other for other in new.type_constraints if other.type_param_str == type_variable.type_param_str)
        assert set(type_variable.allowed_type_strs) <= set(widened.allowed_type_strs)
