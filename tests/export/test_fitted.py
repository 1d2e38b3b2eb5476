"""Fitted layers, refitted and missing MLPs and missing blocks, through every flavour."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export.engines import open_session
from hlap_export.export import export
from tests.engines.test_ort_flavour import session_logits
from tests.export.exports import TinyExports, tiny_checkpoint
from tests.export.test_parity import (
    MASK,
    NUM_TOKENS,
    PADDING,
    RELATIVE_LOGIT_ERROR,
    engine_logits,
    relative_error,
    torch_logits,
)
from tests.export.test_trt_flavour import relative_error as trt_error
from tests.tiny_engines import TinyEngines

CASES = [("llama", "linear"), ("gemma2", "linear"), ("qwen2", "refitted"), ("llama", "blocks"), ("gemma2", "blocks")]
CHUNKS = (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4))


@pytest.mark.parametrize(("family", "plan"), CASES)
def test_flavour_portable_matches_torch(family: str, plan: str, tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get(family, plan)
    error = relative_error(engine_logits(exported, CHUNKS), torch_logits(exported), MASK.bool().numpy())
    assert error <= RELATIVE_LOGIT_ERROR


@pytest.mark.parametrize(("family", "plan"), CASES)
def test_flavour_ort_matches_torch(
    family: str, plan: str, tiny_engines: TinyEngines, tiny_exports: TinyExports
) -> None:
    expected = torch_logits(tiny_exports.get(family, plan, flavour="ort"))
    with open_session(tiny_engines.get(family, plan, flavour="ort").folder, threads=1) as session:
        logits = session_logits(session, CHUNKS, NUM_TOKENS)
    assert relative_error(logits, expected, MASK.bool().numpy()) <= RELATIVE_LOGIT_ERROR


@pytest.mark.parametrize(("family", "plan"), [("llama", "linear"), ("gemma2", "linear"), ("llama", "blocks")])
def test_flavour_trt_matches_torch(family: str, plan: str, tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get(family, plan, "float32", "trt")
    assert trt_error(exported, (6, 9, *[1] * 5)) <= RELATIVE_LOGIT_ERROR


def test_the_matrices_of_linear_layers_are_stored_in_4_bits_like_all_others(tmp_path: Path) -> None:
    manifest = export(tiny_checkpoint(tmp_path, "llama", "linear"), tmp_path / "onnx", flavour="ort", dtype="int4")
    own = {name: bits for name, bits in manifest.facts["quantisation"]["bits"].items() if "self_attn" in name}
    of_layers = {layer: [bits for name, bits in own.items() if f".{layer}." in name] for layer in (1, 2, 3)}
    # Layer 1 has two matrices through 5 values, layer 2 one, layer 3 two of 32 values or their product.
    assert of_layers[1] == [4, 4]
    assert of_layers[2] == [4]
    assert set(of_layers[3]) == {4}
