"""The description of a graph: what is in it, and nothing that varies."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from hlap_export.export.structure import describe, kv_shapes, op_counts

TEXT = """
<ir_version: 10, opset_import: ["" : 18, "com.microsoft" : 1]>
decoder (int64[batch, sequence] input_ids, float16[batch, 2, past, 8] past_0,
         float16[batch, 1, past, 8] past_3)
    => (float[batch, sequence, 2] logits)
    <float16[2, 2] w = {1, 2, 3, 4}, float[1] c = {0.5}>
{
    a = Gather (w, input_ids)
    b = com.microsoft.Gelu (a)
    logits = Cast <to = 1> (b)
}
"""


@pytest.fixture
def decoder() -> ir.Model:
    model = ir.from_onnx_text(TEXT)
    for value, layer in zip(model.graph.inputs[1:], (0, 3), strict=True):
        value.name = f"past_key_values.{layer}.key"  # the text syntax has no dots
    return model


def test_kv_shapes_are_listed_by_original_layer(decoder: ir.Model) -> None:
    assert kv_shapes(decoder) == {0: ("batch", 2, "past", 8), 3: ("batch", 1, "past", 8)}


def test_operators_of_other_domains_are_told_apart(decoder: ir.Model) -> None:
    assert op_counts(decoder) == {"Cast": 1, "Gather": 1, "com.microsoft::Gelu": 1}


def test_the_text_reads_top_down_signature_cache_weights_operators(decoder: ir.Model) -> None:
    assert describe(decoder) == (
        "opset      ai.onnx 18, com.microsoft 1\n"
        "\n"
        "inputs\n"
        "  input_ids                     int64     [batch, sequence]\n"
        "  past_key_values.{i}.key|value float16   2 tensors of length past\n"
        "\n"
        "outputs\n"
        "  logits                        float     [batch, sequence, 2]\n"
        "\n"
        "KV cache   2 layers\n"
        "  layer 0    [batch, 2, past, 8]\n"
        "  layer 3    [batch, 1, past, 8]\n"
        "\n"
        "weights    1 matrices, 4 elements, float16\n"
        "\n"
        "operators  3\n"
        "  Cast                     1\n"
        "  Gather                   1\n"
        "  com.microsoft::Gelu      1\n"
    )
