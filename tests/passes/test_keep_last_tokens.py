"""Above the last attention only the tokens are computed whose logits are asked for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from hlap_export.passes.keep_last_tokens import KeepLastTokens
from tests.passes.running import operators

# Two layers with attention (an operator of that name that needs no cache), and one without.
DECODER = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
decoder (float[B, T, 8] x, int32[B] last, int32 width, float[B, 1, P, 8] past)
    => (float[B, T, 8] logits, float[B, 1, S, 8] k0, float[B, 1, S, 8] v0, float[B, 1, S, 8] k1, float[B, 1, S, 8] v1)
{
    a0, k0, v0 = com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1> (x, x, x, past, past, last, width)
    x1 = Add (x, a0)
    a1, k1, v1 = com.microsoft.GroupQueryAttention <num_heads = 1, kv_num_heads = 1>
                 (x1, x1, x1, past, past, last, width)
    x2 = Add (x1, a1)
    m2 = Exp (x2)
    logits = Add (x2, m2)
}
"""


def decoder() -> ir.Model:
    model = ir.from_onnx_text(DECODER)
    stream = model.graph.inputs[0]
    for node in model.graph:
        node.outputs[0].shape, node.outputs[0].type = stream.shape, stream.type
    return model


def logits_of(model: ir.Model, **more: np.ndarray) -> tuple[np.ndarray, ...]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    x = np.random.default_rng(3).standard_normal((1, 5, 8)).astype(np.float32)
    past = np.zeros((1, 1, 0, 8), np.float32)
    return tuple(
        session.run(
            None, {"x": x, "last": np.array([4], np.int32), "width": np.array(5, np.int32), "past": past} | more
        )
    )


@pytest.mark.parametrize("kept", [0, 1, 3, 5, 9])
def test_so_many_last_logits_are_those_of_the_whole(kept: int) -> None:
    whole, *caches = logits_of(decoder())
    model = decoder()
    assert KeepLastTokens()(model).modified
    last, *same_caches = logits_of(model, num_logits_to_keep=np.array([kept]))
    np.testing.assert_array_equal(last, whole[:, -kept:])
    for cache, same in zip(caches, same_caches, strict=True):
        np.testing.assert_array_equal(cache, same)


def test_without_the_input_all_logits_are_there() -> None:
    model = decoder()
    KeepLastTokens()(model)
    np.testing.assert_array_equal(logits_of(model)[0], logits_of(decoder())[0])


def test_tokens_are_dropped_right_above_the_last_attention() -> None:
    model = decoder()
    KeepLastTokens()(model)
    assert operators(model) == [
        *("GroupQueryAttention", "Add", "GroupQueryAttention"),
        *("Neg", "Slice", "Slice", "Add", "Exp", "Add"),
    ]
    dims = {
        str(node.outputs[0].name): str(node.outputs[0].shape[1])
        for node in model.graph
        if node.op_type in ("Add", "Exp")
    }
    assert dims == {"x1": "T", "x2": "num_logits", "m2": "num_logits", "logits": "num_logits"}
