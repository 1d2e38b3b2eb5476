"""What is said of TensorRT's kernels is what its compiler does."""

from __future__ import annotations

from typing import Any

import onnx.parser
import pytest

from hlap_export.passes.attention_kernels import MAX_SINGLE_TOKEN_CAPACITY, attention_form, decode_tokens

# One layer's attention as the flavour writes it, its mask over the slots of a cache.
LAYER = """
<ir_version: 12, opset_import: ["" : 24]>
layer ({dtype}[1, {heads}, T, {size}] q, {dtype}[1, 1, {capacity}, {size}] k, {dtype}[1, 1, {capacity}, {size}] v,
       int64[T, 1] positions, int64[{capacity}] slots) => ({dtype}[1, {heads}, T, {size}] context)
{{
    mask = LessOrEqual (slots, positions)
    context = Attention <scale = 0.125> (q, k, v, mask)
}}
"""


def builds(*, heads: int, size: int, dtype: str, capacity: int, most_tokens: int) -> bool:
    """Whether TensorRT-RTX has a fused kernel: it refuses to decompose the operator by itself."""
    trt: Any = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network, config = builder.create_network(0), builder.create_builder_config()
    name = {"float32": "float"}.get(dtype, dtype)
    text = LAYER.format(dtype=name, heads=heads, size=size, capacity=capacity)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(onnx.parser.parse_model(text).SerializeToString())
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(index) for index in range(network.num_inputs)):
        shapes = [[tokens if dim == -1 else dim for dim in tensor.shape] for tokens in (1, 1, most_tokens)]
        profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize(
    ("heads", "size", "dtype"),
    [
        *((heads, 64, "float16") for heads in (1, 2, 3, 4, 5, 32)),
        *((8, size, "float16") for size in (8, 16, 24, 100, 256, 264)),
        *((3, 128, "bfloat16"), (8, 128, "bfloat16"), (8, 64, "float32")),
    ],
)
def test_a_layer_has_the_kernels_that_the_compiler_has(heads: int, size: int, dtype: str) -> None:
    form = attention_form(layer=0, num_heads=heads, head_dim=size, dtype=dtype, softcap=0.0)
    layer = {"heads": heads, "size": size, "dtype": dtype, "capacity": 512}
    assert builds(**layer, most_tokens=64) == (form.prefill == "prompt_kernel")
    if form.form == "operator":
        assert builds(**layer, most_tokens=1) == (form.decode == "single_token_kernel")
        assert builds(**layer, most_tokens=2)


@pytest.mark.parametrize(("capacity", "alone"), [(MAX_SINGLE_TOKEN_CAPACITY, True), (24576, False)])
def test_a_long_cache_needs_a_decode_profile_of_two_tokens(capacity: int, alone: bool) -> None:
    form = attention_form(layer=0, num_heads=8, head_dim=128, dtype="float16", softcap=0.0).facts()
    layer = {"heads": 8, "size": 128, "dtype": "float16", "capacity": capacity}
    assert decode_tokens([form], capacity) == (1 if alone else 2)
    assert builds(**layer, most_tokens=1) == alone
    assert builds(**layer, most_tokens=decode_tokens([form], capacity))


@pytest.mark.parametrize(("heads", "tokens"), [((8, 8), 1), ((8, 3), 2), ((8, 1), 1)])
def test_one_layer_with_few_heads_decides_for_all_unless_it_has_no_kernel_anyway(
    heads: tuple[int, ...], tokens: int
) -> None:
    forms = [
        attention_form(layer=layer, num_heads=count, head_dim=64, dtype="float16", softcap=0.0).facts()
        for layer, count in enumerate(heads)
    ]
    assert decode_tokens(forms, capacity=4096) == tokens


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"softcap": 50.0}, "soft-capped"),
        ({"dtype": "float32"}, "float32"),
        ({"num_heads": 1}, "one query head"),
        ({"head_dim": 100}, "head size 100"),
    ],
)
def test_a_layer_without_a_kernel_is_plain_and_says_why(arguments: dict[str, Any], reason: str) -> None:
    usual: dict[str, Any] = {"layer": 3, "num_heads": 8, "head_dim": 64, "dtype": "float16", "softcap": 0.0}
    assert attention_form(**usual).reason == ""
    form = attention_form(**usual | arguments)
    assert (form.form, form.prefill, form.decode) == ("plain", "decomposed", "decomposed")
    assert form.reason.startswith(reason)
