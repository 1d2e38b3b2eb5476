"""Three projections become one product, side by side in the order in which the attention takes them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hlap_export.passes.pack_projections import PackProjections
from tests.passes.running import operators, random, with_weights

WEIGHTS = {"q_proj": random(6, 8), "k_proj": random(6, 4), "v_proj": random(6, 4)}  # [in, out]
BIASES = {"q_proj_bias": random(8), "k_proj_bias": random(4), "v_proj_bias": random(4)}

SEPARATE = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
layer (float[B, T, 6] x, float[B, T, 6] other, float[6, 8] q_proj, float[6, 4] k_proj, float[6, 4] v_proj,
       float[8] q_proj_bias, float[4] k_proj_bias, float[4] v_proj_bias) => (float[B, T, 8] y)
{
    qm = MatMul (x, q_proj)
    km = MatMul (x, k_proj)
    vm = MatMul (x, v_proj)
    q = Add (qm, q_proj_bias)
    k = Add (k_proj_bias, km)
    v = Add (vm, v_proj_bias)
    y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (q, k, v)
}
"""


def made(text: str) -> ir.Model:
    return with_weights(text, **WEIGHTS, **BIASES)


def packed_weight(model: ir.Model) -> np.ndarray:
    return model.graph.initializers["qkv_proj"].const_value.numpy()


def test_weights_and_biases_lie_side_by_side_and_the_attention_reads_one_tensor() -> None:
    model = made(SEPARATE)
    assert PackProjections()(model).modified
    assert [name for name in operators(model) if name != "MatMul" and name != "Add"] == ["GroupQueryAttention"]
    attention = model.graph[-1]
    assert [value is None for value in attention.inputs[:3]] == [False, True, True]
    addition = attention.inputs[0].producer()
    assert addition.op_type == "Add"
    np.testing.assert_array_equal(packed_weight(model), np.concatenate(list(WEIGHTS.values()), axis=1))
    np.testing.assert_array_equal(addition.inputs[1].const_value.numpy(), np.concatenate(list(BIASES.values())))


def test_projections_without_biases_are_one_product() -> None:
    text = "\n".join(line for line in SEPARATE.splitlines() if "Add" not in line)
    model = made(text.replace("(q, k, v)", "(qm, km, vm)"))
    assert PackProjections()(model).modified
    assert model.graph[-1].inputs[0].producer().op_type == "MatMul"


def test_projections_of_different_activations_stay_apart() -> None:
    assert not PackProjections()(made(SEPARATE.replace("MatMul (x, k_proj)", "MatMul (other, k_proj)"))).modified


def test_a_query_that_something_else_reads_too_stays_apart() -> None:
    text = SEPARATE.replace("=> (float[B, T, 8] y)", "=> (float[B, T, 8] y, float[B, T, 8] norm)")
    assert not PackProjections()(made(text.replace("y = com", "norm = Exp (q)\n    y = com"))).modified


def test_keys_with_a_norm_of_their_own_stay_apart() -> None:
    assert not PackProjections()(made(SEPARATE.replace("k = Add (k_proj_bias, km)", "k = Exp (km)"))).modified
