"""Exports in 4 and 8 bits: every matrix is stored, once, and means what the checkpoint says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from hlap_export.artifacts import Manifest
from hlap_export.export import MODEL_FILE, export
from tests.export.exports import tiny_checkpoint
from tests.passes.dequantised import PARTS, dequantised

# Half a step of 1/15 and 1/255 of a block's range, which is some 3.5 standard deviations in blocks of 16; a wrong
# scale, zero point, order or transpose is an error of 1 and more.
LARGEST_ERROR_RATIO = {4: 0.1, 8: 0.006}


class QuantisedExport:
    """A tiny pruned checkpoint, and what was exported from it."""

    def __init__(self, root: Path, family: str, dtype: str) -> None:
        checkpoint = tiny_checkpoint(root, family, "mixed")
        self.folder = root / f"{family}-{dtype}"
        self.manifest: Manifest = export(checkpoint, self.folder, flavour="ort", dtype=dtype, block_size=16)
        self.graph = ir.load(self.folder / MODEL_FILE).graph
        self.weights: dict[str, torch.Tensor] = load_file(checkpoint / "model.safetensors")

    @property
    def bits(self) -> dict[str, int]:
        return self.manifest.facts["quantisation"]["bits"]

    def stored(self, name: str) -> np.ndarray:
        parts: list[Any] = [
            self.graph.initializers[f"{name}.{part}"].const_value.numpy() for part in PARTS[self.bits[name]]
        ]
        return dequantised(*parts, bits=self.bits[name], columns=self.original(name).shape[1])

    def original(self, name: str) -> torch.Tensor:
        """Of the checkpoint, [out, in]: packed projections lie below each other, merged ones are a product."""
        matrices = [self.weights[source].double() for source in sources(name)]
        return matrices[0] @ matrices[1] if "vo_proj" in name else torch.cat(matrices)


def sources(name: str) -> list[str]:
    """The checkpoint's matrices that a stored one is made of."""
    made_of = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "vo_proj": ("o_proj", "v_proj")}
    for made, parts in made_of.items():
        if made in name:
            return [name.replace(made, part) for part in parts]
    return [name]


@pytest.fixture(scope="module", params=[("llama", "int4"), ("qwen2", "int8")], ids=str)
def quantised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> QuantisedExport:
    return QuantisedExport(tmp_path_factory.mktemp("quantised"), *request.param)


def test_every_stored_matrix_means_what_the_checkpoint_says(quantised: QuantisedExport) -> None:
    for name, bits in quantised.bits.items():
        expected = quantised.original(name).numpy()
        error = np.linalg.norm(quantised.stored(name) - expected) / np.linalg.norm(expected)
        assert 0 < error < LARGEST_ERROR_RATIO[bits], name


def test_every_matrix_of_the_checkpoint_is_stored_in_few_bits_and_none_in_floats_as_well(
    quantised: QuantisedExport,
) -> None:
    matrices = {name for name, tensor in quantised.weights.items() if tensor.dim() == 2}
    assert matrices == {source for name in quantised.bits for source in sources(name)}
    large = {name for name, value in quantised.graph.initializers.items() if value.dtype == ir.DataType.FLOAT}
    assert large.isdisjoint(matrices)


def test_the_head_and_a_tied_embedding_share_one_matrix(quantised: QuantisedExport) -> None:
    tied = "lm_head.weight" not in quantised.weights
    expected = {"model.embed_tokens.weight": 4} if tied else {"model.embed_tokens.weight": 8, "lm_head.weight": 8}
    assert {name: bits for name, bits in quantised.bits.items() if "layers" not in name} == expected


def test_an_untied_embedding_keeps_8_bits_beside_a_head_of_4(tmp_path: Path) -> None:
    bits = QuantisedExport(tmp_path, "qwen3", "int4").bits
    assert (bits["model.embed_tokens.weight"], bits["lm_head.weight"]) == (8, 4)


def test_activations_and_cache_stay_floats_and_the_manifest_says_what_was_asked(quantised: QuantisedExport) -> None:
    types = {value.dtype for value in quantised.graph.inputs if "past" in (value.name or "")}
    assert types == {ir.DataType.FLOAT}
    parameters = quantised.manifest.parameters
    assert (parameters["flavour"], parameters["block_size"]) == ("ort", 16)
    assert parameters["dtype"] in ("int4", "int8")


def test_the_file_passes_the_checker(quantised: QuantisedExport) -> None:
    onnx.checker.check_model(quantised.folder / MODEL_FILE)


def test_the_same_request_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path, "llama", "dense")
    manifests = [export(checkpoint, tmp_path / name, flavour="ort", dtype="int4") for name in ("one", "two")]
    assert manifests[0].files == manifests[1].files
