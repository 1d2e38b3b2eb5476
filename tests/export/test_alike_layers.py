"""One layer of each kind is traced, and the graph is the one that tracing all of them gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from hlap_export.checkpoint import read_layout
from hlap_export.export import MODEL_FILE, export, onnx_from_torch
from hlap_export.export.alike_layers import BOUNDARY, first_alike, only_layers
from hlap_export.export.export import DATA_FILE
from hlap_export.export.weightless import weightless_model
from tests.export.exports import tiny_checkpoint


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


def every_layer(model: nn.Module) -> tuple[int, ...]:
    """In place of `first_alike`: no layer is like another."""
    return tuple(range(len(model.model.layers)))


@pytest.mark.parametrize(("family", "plan"), [("llama", "suffix"), ("gemma2", "dense")])
def test_repeated_layers_are_byte_for_byte_those_of_a_trace_of_all(
    family: str, plan: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(root, family, plan)
    export(checkpoint, tmp_path / "repeated", flavour="ort")
    monkeypatch.setattr(onnx_from_torch, "first_alike", every_layer)
    export(checkpoint, tmp_path / "traced", flavour="ort")
    for name in (MODEL_FILE, DATA_FILE):
        assert (tmp_path / "repeated" / name).read_bytes() == (tmp_path / "traced" / name).read_bytes()


@pytest.mark.parametrize(("family", "plan"), [("llama", "dense"), ("gemma2", "dense"), ("qwen2", "mixed")])
def test_layers_are_alike_that_have_the_same_shapes_and_window(family: str, plan: str, root: Path) -> None:
    checkpoint = tiny_checkpoint(root, family, plan)
    layout = read_layout(checkpoint)
    types = layout.layer_types or [None] * layout.num_layers
    kinds = [(kind, replace(layer, index=0)) for kind, layer in zip(types, layout.layers, strict=True)]
    assert first_alike(weightless_model(checkpoint, torch.float32)) == tuple(kinds.index(kind) for kind in kinds)


def test_a_setting_of_one_layer_sets_it_apart(root: Path) -> None:
    model = weightless_model(tiny_checkpoint(root, "llama", "dense"), torch.float32)
    model.model.layers[2].self_attn.scaling *= 2
    assert first_alike(model) == (0, 0, 2, 0)


def test_the_model_is_whole_again_after_the_trace(root: Path) -> None:
    model = weightless_model(tiny_checkpoint(root, "gemma2", "dense"), torch.float32)
    names, kinds = [name for name, _ in model.named_parameters()], list(model.config.layer_types)
    with only_layers(model, [0, 1]):
        assert len(model.model.layers) == model.config.num_hidden_layers == 2
    assert [name for name, _ in model.named_parameters()] == names
    assert model.config.layer_types == kinds
    assert model.config.num_hidden_layers == len(kinds)
    hooks = [module for module in model.modules() if module._forward_pre_hooks]
    assert hooks == [], BOUNDARY
