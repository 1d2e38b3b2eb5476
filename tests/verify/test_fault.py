"""A fault planted in one tensor is found again: the layer, the tensor, and what to try."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from hlap_export.errors import ArtefactError, CheckFailed
from hlap_export.verify import VerifyOptions, VerifyReport, verify
from hlap_export.verify import fault as fault_search
from tests.tiny_engines import TinyEngines, altered

OPTIONS = VerifyOptions(prompt_lengths=(12, 7), decode_steps=16, threads=1)
# The mixed plan: layer 1 is value-only with alpha folded in, layer 3 has no attention; 0 and 2 have fewer heads.
FOLDED = "model.layers.1.self_attn.o_proj"


def plant(folder: Path, node_name: str, factor: float = 1.01) -> None:
    """Scale half of the weight that the named node multiplies by, in the engine's data file.

    Half, for Gemma-2's norm after the attention would undo it if it were all.
    """
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    node = next(node for node in graph.node if node.name.startswith(f"{node_name}/") and "MatMul" in node.op_type)
    tensor = next(tensor for tensor in graph.initializer if tensor.name in node.input)
    offset = int({entry.key: entry.value for entry in tensor.external_data}["offset"])
    weights = np.memmap(
        folder / "model.onnx.data", dtype=np.float32, mode="r+", offset=offset, shape=tuple(tensor.dims)
    )
    weights[:, ::2] *= factor
    weights.flush()


def verified(engines: TinyEngines, tmp_path: Path, node: str, **keys: str) -> VerifyReport:
    engine = engines.get(**keys)
    wrong = altered(engine.folder, tmp_path / "wrong", lambda folder: plant(folder, node))
    return verify(wrong, engine.checkpoint, options=OPTIONS)


@pytest.mark.parametrize(("family", "flavour"), [("llama", "ort"), ("llama", "portable"), ("gemma2", "ort")])
def test_a_fault_in_one_folded_tensor_fails_and_names_its_layer(
    tiny_engines: TinyEngines, tmp_path: Path, family: str, flavour: str
) -> None:
    report = verified(tiny_engines, tmp_path, FOLDED, family=family, flavour=flavour)
    assert not report.passed
    assert report.fault is not None and report.fault.tensor is not None
    assert (report.fault.part, report.fault.tensor.name) == ("layer 1", FOLDED)
    assert report.fault.num_beyond_bound == 1, "errors of later layers aren't their own"
    assert 3e-3 < report.fault.tensor.error_ratio < 1e-2
    assert [part.name for part in report.fault.parts] == ["embedding", *(f"layer {i}" for i in range(4)), "head"]
    with pytest.raises(
        CheckFailed, match=rf"first in layer 1.*{FOLDED} by \d\.\de-03.*Fix: what layer 1 reads is right"
    ):
        report.require_passed()


@pytest.mark.parametrize(
    ("node", "tensor"),
    [
        ("model.layers.2.self_attn", "model.layers.2.self_attn.qkv_proj"),
        ("model.layers.3.mlp.down_proj", "model.layers.3.mlp.down_proj"),
    ],
)
def test_a_fault_in_another_tensor_is_told_apart(
    tiny_engines: TinyEngines, tmp_path: Path, node: str, tensor: str
) -> None:
    fault = verified(tiny_engines, tmp_path, node, flavour="ort").fault
    assert fault is not None and fault.tensor is not None
    assert fault.tensor.name == tensor


def test_a_fault_in_a_map_whose_bias_the_next_norm_adds_is_blamed_on_the_map(
    tiny_engines: TinyEngines, tmp_path: Path
) -> None:
    """The graph has no value that is the map's output: PyTorch's is compared before its bias."""
    whole = "model.layers.2.self_attn.o_proj"
    engine = tiny_engines.get(plan="linear", flavour="ort")
    right = verify(engine.folder, engine.checkpoint, options=replace(OPTIONS, bisect=True)).fault
    assert right is not None and right.tensor is not None and right.tensor.error_ratio < 2e-6
    fault = verified(tiny_engines, tmp_path, whole, plan="linear", flavour="ort").fault
    assert fault is not None and fault.tensor is not None
    assert (fault.tensor.name, fault.num_beyond_bound) == (whole, 1)
    assert 3e-3 < fault.tensor.error_ratio < 1e-2


def test_a_fault_in_the_head_is_not_blamed_on_a_layer(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    """Mistral's head isn't tied to the embedding."""
    fault = verified(tiny_engines, tmp_path, "lm_head", family="mistral", flavour="ort").fault
    assert fault is not None
    assert (fault.part, fault.tensor) == ("head", None)


def test_another_checkpoint_is_recognised_by_all_parts_being_wrong(tiny_engines: TinyEngines) -> None:
    report = verify(tiny_engines.get().folder, tiny_engines.get("llama", "dense").checkpoint, options=OPTIONS)
    assert report.fault is not None
    with pytest.raises(CheckFailed, match="parts differ, so the checkpoint is probably another one"):
        report.require_passed()


def test_an_engine_that_is_right_is_looked_into_only_when_asked(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get(flavour="ort")
    assert verify(engine.folder, engine.checkpoint, options=OPTIONS).fault is None
    report = verify(engine.folder, engine.checkpoint, options=replace(OPTIONS, bisect=True))
    assert report.passed
    assert report.fault is not None and not report.fault.is_beyond_bound
    assert max(part.error_ratio for part in report.fault.parts) < 2e-6


def test_an_engine_that_cannot_be_looked_into_is_told_where_somebody_asked_for_it(
    tiny_engines: TinyEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT's are: their compilers leave no graph."""
    engine = tiny_engines.get(flavour="ort")
    monkeypatch.setattr(fault_search, "tracer_of", lambda _: None)
    assert verify(engine.folder, engine.checkpoint, options=OPTIONS).fault is None
    with pytest.raises(ArtefactError, match="build the same export with --engine onnxruntime, and verify that engine"):
        verify(engine.folder, engine.checkpoint, options=replace(OPTIONS, bisect=True))
