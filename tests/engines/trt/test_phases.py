from __future__ import annotations

import pytest

from hlap_export.engines.trt.options import TensorRTOptions, resolved, sizes_of
from hlap_export.engines.trt.phases import GraphInput, ShapeRange, ranges, shape_ranges
from hlap_export.errors import ArtefactError

INPUTS = (
    GraphInput(name="input_ids", dims=("batch", "sequence")),
    GraphInput(name="write_indices", dims=("batch",)),
    GraphInput(name="logits_indices", dims=("batch", "num_logits")),
    GraphInput(name="past_key_values.3.key", dims=("batch", 2, 512, 16)),
)
SIZES = sizes_of(resolved(TensorRTOptions(max_batch=8, typical_batch=2, max_prompt=100), max_positions=512))


def test_sizes_that_are_left_out_follow_from_the_model() -> None:
    sizes = sizes_of(resolved(TensorRTOptions(), max_positions=512))
    assert (sizes.capacity, sizes.max_prompt, sizes.typical_prompt, sizes.max_logits) == (512, 512, 256, 64)
    sizes = sizes_of(resolved(TensorRTOptions(), max_positions=131072))
    assert (sizes.capacity, sizes.max_prompt, sizes.typical_prompt, sizes.max_logits) == (4096, 1024, 256, 64)


def test_a_prefill_takes_prompts_up_to_the_longest_and_logits_up_to_the_most() -> None:
    shapes = shape_ranges(INPUTS, ranges("prefill", SIZES, decode_tokens=1))
    assert shapes["input_ids"] == ShapeRange(least=(1, 1), typical=(2, 100), most=(8, 100))
    assert shapes["logits_indices"] == ShapeRange(least=(1, 1), typical=(2, 1), most=(8, 64))
    assert shapes["past_key_values.3.key"].most == (8, 2, 512, 16)


@pytest.mark.parametrize("tokens", [1, 2])
def test_a_decode_step_takes_one_token_or_two_where_a_layer_has_no_kernel_for_one(tokens: int) -> None:
    shapes = shape_ranges(INPUTS, ranges("decode", SIZES, decode_tokens=tokens))
    assert shapes["input_ids"] == ShapeRange(least=(1, 1), typical=(2, 1), most=(8, tokens))
    assert shapes["logits_indices"].most == (8, 1)


def test_a_dimension_without_a_known_name_is_refused() -> None:
    with pytest.raises(ArtefactError, match=r"input past: expected .* found 'past_sequence'"):
        shape_ranges([GraphInput(name="past", dims=("past_sequence",))], ranges("prefill", SIZES, decode_tokens=1))
