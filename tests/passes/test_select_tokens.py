"""Above the last attention only the tokens are computed that are named."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hlap_export.passes.lower_attention import LowerAttention
from hlap_export.passes.select_tokens import SelectTokens
from tests.passes.running import operators, random, run

# One layer with attention, of one head, and one without.
DECODER = """
<ir_version: 12, opset_import: ["" : 24, "hlap" : 1]>
decoder (int64[B, T] input_ids, float[B, T, 8] x, float[B, 1, T, T] mask, float[B, 1, T, 8] "past_key_values.0.key")
    => (float[B, T, 8] logits)
<int64[4] apart = {0, 0, 1, 8}, int64[3] flat = {0, 0, 8}>
{
    x0 = Neg (x)
    heads = Reshape (x0, apart)
    q = Transpose <perm = [0, 2, 1, 3]> (heads)
    a = hlap.Attention <scale = 1.0, softcap = 0.0, sliding_window = 0> (q, "past_key_values.0.key", q, mask)
    t = Transpose <perm = [0, 2, 1, 3]> (a)
    c = Reshape (t, flat)
    x1 = Add (x0, c)
    m = Exp (x1)
    logits = Add (x1, m)
}
"""


def decoder() -> ir.Model:
    model = ir.from_onnx_text(DECODER)
    tokens, stream, *_ = model.graph.inputs
    batch, sequence = tokens.shape
    shapes = dict.fromkeys(("x0", "c", "x1", "m"), stream.shape)
    shapes |= dict.fromkeys(("heads", "t"), ir.Shape([batch, sequence, 1, 8]))
    shapes |= dict.fromkeys(("q", "a"), ir.Shape([batch, 1, sequence, 8]))
    for node in model.graph:
        value = node.outputs[0]
        value.shape, value.type = shapes.get(str(value.name), value.shape), stream.type
    return model


def test_named_tokens_of_each_row_are_those_of_the_whole() -> None:
    whole, model = decoder(), decoder()
    assert SelectTokens()(model).modified
    for either in (whole, model):
        LowerAttention()(either)
    feeds = {
        "input_ids": np.zeros((2, 5), np.int64),
        "x": random(2, 5, 8),
        "mask": np.zeros((2, 1, 5, 5), np.float32),
        "past_key_values.0.key": random(2, 1, 5, 8),
    }
    (every,) = run(whole, **feeds)
    rows = np.array([[4, 0, 4], [2, 2, 1]])
    (named,) = run(model, logits_indices=rows, **feeds)
    np.testing.assert_array_equal(named, np.stack([every[0][rows[0]], every[1][rows[1]]]))


def test_tokens_are_selected_right_above_the_attention_and_shapes_say_so() -> None:
    model = decoder()
    SelectTokens()(model)
    assert operators(model) == [
        *("Neg", "Reshape", "Transpose", "Attention", "Transpose", "Reshape"),
        *("Unsqueeze", "GatherND", "GatherND", "Add", "Exp", "Add"),
    ]
    assert [value.name for value in model.graph.inputs][-2:] == ["logits_indices", "past_key_values.0.key"]
    lengths = {node.op_type: str(node.outputs[0].shape[1]) for node in model.graph if node.outputs[0].shape is not None}
    assert lengths["Reshape"] == "T"
    assert {lengths[name] for name in ("GatherND", "Add", "Exp")} == {"num_logits"}
