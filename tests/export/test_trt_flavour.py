"""Flavour `trt`, the graph that TensorRT builds, computes on ONNX Runtime what the torch model computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from hlap_export.artifacts import read_manifest
from hlap_export.checkpoint import load_model, read_layout
from hlap_export.export import in_place_contract
from hlap_export.export.structure import describe_file
from hlap_export.families import FAMILIES
from tests.export.exports import GOLDEN_PLANS, TinyExport, TinyExports
from tests.export.test_export import ONNX_TYPES, signature
from tests.export.test_parity import FLOAT16_LOGIT_ERROR, RELATIVE_LOGIT_ERROR, Arrays, open_session
from tests.tiny import VOCAB_SIZE

LENGTHS = (20, 13)  # longer than the sliding window of 7 by far
CAPACITY = 24
RANDOM = np.random.default_rng(8)
IDS = RANDOM.integers(1, VOCAB_SIZE, (2, max(LENGTHS)))


class Rows:
    """Two rows of different lengths in one session, whose caches hold garbage where nothing was written yet."""

    def __init__(self, exported: TinyExport) -> None:
        self._session = open_session(exported)
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]
        self.at = np.zeros(2, np.int64)
        self.caches: Arrays = {
            tensor.name: RANDOM.normal(size=(2, tensor.shape[1], CAPACITY, tensor.shape[3])).astype(
                np.float16 if tensor.type == "tensor(float16)" else np.float32
            )
            for tensor in self._session.get_inputs()
            if tensor.name.startswith("past_key_values.")
        }

    def step(self, width: int) -> list[np.ndarray[Any, Any]]:
        """Logits of up to `width` new tokens of each row; a row with fewer is padded on the right."""
        new = np.minimum(width, np.array(LENGTHS) - self.at)
        ids = np.full((2, width), 5)
        for row, (start, count) in enumerate(zip(self.at, new, strict=True)):
            ids[row, :count] = IDS[row, start : start + count]
        logits = self.run(ids, np.tile(np.arange(width), (2, 1)))
        self.at += new
        return [row[:count] for row, count in zip(logits, new, strict=True)]

    def run(self, ids: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        feeds = {"input_ids": ids, "write_indices": self.at, "logits_indices": wanted}
        outputs = dict(zip(self._outputs, self._session.run(None, feeds | self.caches), strict=True))
        logits = outputs.pop("logits")
        self.caches = {name.replace("present", "past_key_values"): array for name, array in outputs.items()}
        return logits


def relative_error(exported: TinyExport, widths: tuple[int, ...]) -> float:
    """Largest difference to each row's own uncached forward pass in torch, over the largest logit."""
    rows, model = Rows(exported), load_model(exported.checkpoint, dtype=torch.float32)
    steps = [rows.step(width) for width in widths]
    errors: list[float] = []
    for row, length in enumerate(LENGTHS):
        logits = np.concatenate([step[row] for step in steps])
        with torch.no_grad():
            expected = model(input_ids=torch.tensor(IDS[row : row + 1, :length])).logits[0].numpy()
        assert logits.shape == expected.shape
        errors.append(float(np.abs(logits - expected).max() / np.abs(expected).max()))
    return max(errors)


@pytest.mark.parametrize(("family", "plan"), [(family, plan) for family in FAMILIES for plan in GOLDEN_PLANS])
def test_rows_of_different_lengths_match_torch_in_chunks_and_step_by_step_in_float16(
    family: str, plan: str, tiny_exports: TinyExports
) -> None:
    exported = tiny_exports.get(family, plan, "float16", "trt")
    assert relative_error(exported, (5, 7, *[1] * 8)) <= FLOAT16_LOGIT_ERROR


@pytest.mark.parametrize(("family", "plan"), [("llama", "mixed"), ("gemma2", "mixed")])
def test_float32_matches_torch_within_the_bound_of_other_flavours(
    family: str, plan: str, tiny_exports: TinyExports
) -> None:
    exported = tiny_exports.get(family, plan, "float32", "trt")
    for widths in ((20,), (5, 7, *[1] * 8)):  # at once, the second row's padding 7 wide; then in steps
        assert relative_error(exported, widths) <= RELATIVE_LOGIT_ERROR


def test_each_row_names_the_tokens_that_have_logits(tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get("gemma2", "suffix", "float16", "trt")
    every = Rows(exported).run(IDS, np.tile(np.arange(20), (2, 1)))
    last = Rows(exported).run(IDS, np.array([[19], [12]]))
    assert last.shape == (2, 1, VOCAB_SIZE)
    np.testing.assert_allclose(last[:, 0], every[[0, 1], [19, 12]], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("family", "dtype"), [*((family, "float16") for family in FAMILIES), ("llama", "bfloat16")])
def test_inputs_and_outputs_are_the_contracts(family: str, dtype: str, tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get(family, "partial_heads", dtype, "trt")
    contract = in_place_contract(read_layout(exported.checkpoint), dtype)
    graph = ir.load(exported.model_file).graph
    for declared, specs in ((graph.inputs, contract.inputs), (graph.outputs, contract.outputs)):
        assert signature(list(declared)) == [(spec.name, ONNX_TYPES[spec.dtype], spec.shape) for spec in specs]


def test_bfloat16_is_the_graph_of_float16_in_another_type(tiny_exports: TinyExports) -> None:
    # ONNX Runtime's CPU has no kernels for it: that its operators are those that were compared is what can be shown.
    half, brain = (
        describe_file(tiny_exports.get("llama", "partial_heads", dtype, "trt").model_file)
        for dtype in ("float16", "bfloat16")
    )
    assert brain.replace("bfloat16", "float16").split() == half.split()


def test_caches_are_graph_inputs_and_outputs_of_the_operator_that_writes_them(tiny_exports: TinyExports) -> None:
    # TensorRT refuses a cache that anything else touches on its way in or out.
    graph = ir.load(tiny_exports.get("llama", "mixed", "float32", "trt").model_file).graph
    scatters = [node for node in graph if node.op_type == "TensorScatter"]
    caches = [value for value in graph.inputs if value.name.startswith("past_key_values.")]
    assert [node.inputs[0] for node in scatters] == caches
    assert [node.outputs[0] for node in scatters] == list(graph.outputs)[1:]
    assert all(len(cache.uses()) <= 2 for cache in caches)  # the mask's width may be read off one of them


def test_the_manifest_says_how_each_layer_attends_and_why(tiny_exports: TinyExports) -> None:
    def forms(family: str, plan: str, dtype: str) -> list[tuple[int, str, str, str]]:
        facts = read_manifest(tiny_exports.get(family, plan, dtype, "trt").folder).facts["attention"]
        return [(form["layer"], form["form"], form["decode"], form["reason"].split(":")[0]) for form in facts]

    # 4, 3, 6 and 1 query heads; the layers of "mixed" that attend are the first and the third, with 2 each.
    assert forms("llama", "partial_heads", "float16") == [
        (0, "operator", "single_token_kernel", ""),
        (1, "operator", "prompt_kernel", "3 query heads"),
        (2, "operator", "single_token_kernel", ""),
        (3, "plain", "decomposed", "one query head"),
    ]
    assert forms("llama", "mixed", "float32") == [(layer, "plain", "decomposed", "float32") for layer in (0, 2)]
    assert {reason for *_, reason in forms("gemma2", "suffix", "float16")} == {"soft-capped scores (5)"}


def test_the_file_is_the_same_for_every_capacity_and_has_onnx_operators_alone(tiny_exports: TinyExports) -> None:
    model = ir.load(tiny_exports.get("llama", "partial_heads", "float16", "trt").model_file)
    assert dict(model.opset_imports) == {"": 24}
    assert {node.domain for node in model.graph} == {""}
    assert "capacity" in {dim.value for value in model.graph.inputs for dim in value.shape if not isinstance(dim, int)}


def test_every_shape_between_operators_is_known_up_to_the_contracts_dimensions(tiny_exports: TinyExports) -> None:
    graph = ir.load(tiny_exports.get("qwen3", "partial_heads", "float16", "trt").model_file).graph
    named = {"batch", "sequence", "capacity", "num_logits"}
    unknown = {
        f"{node.name}: {value.shape}"
        for node in graph
        for value in node.outputs
        if value.shape is None
        or any(not isinstance(dim, int) and dim.value is not None and dim.value not in named for dim in value.shape)
    }
    assert not unknown
