"""The tanh form of GELU is one operator."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch

from hlap_export.passes.fast_gelu import FastGelu
from tests.passes.running import operators, random, run

ACTIVATION = """
<ir_version: 8, opset_import: ["" : 18]>
activation (float[B, T, 8] x, float[B, T, 8] up) => (float[B, T, 8] y)
<float three = {3.0}, float cubic = {0.044715}, float root = {0.7978846}, float one = {1.0}, float half = {0.5}>
{
    power = Pow (x, three)
    scaled = Mul (power, cubic)
    sum = Add (x, scaled)
    inner = Mul (root, sum)
    tanh = Tanh (inner)
    shifted = Add (one, tanh)
    halved = Mul (half, shifted)
    gelu = Mul (x, halved)
    y = Mul (gelu, up)
}
"""


def test_the_operator_computes_torchs_gelu() -> None:
    model = ir.from_onnx_text(ACTIVATION)
    assert FastGelu()(model).modified
    assert operators(model) == ["FastGelu", "Mul"]
    x, up = 3 * random(2, 3, 8), random(2, 3, 8)
    expected = torch.nn.functional.gelu(torch.from_numpy(x), approximate="tanh").numpy() * up
    np.testing.assert_allclose(run(model, x=x, up=up)[0], expected, atol=1e-6)


def test_another_power_or_factor_is_left() -> None:
    for changed in (ACTIVATION.replace("{3.0}", "{2.0}"), ACTIVATION.replace("0.044715", "0.05")):
        assert not FastGelu()(ir.from_onnx_text(changed)).modified
