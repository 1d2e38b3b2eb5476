"""A wrong weight in the pruned checkpoint itself is found, though an engine exported from it agrees with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from hlap_export.engines import build
from hlap_export.errors import CheckFailed
from hlap_export.export import export
from hlap_export.families import FAMILIES
from hlap_export.verify import VerifyOptions, verify
from hlap_export.verify.folds import check_folds
from tests.export.exports import TinyExports, tiny_checkpoint
from tests.tiny import VOCAB_SIZE
from tests.tiny_engines import altered

IDS = np.random.default_rng(11).integers(0, VOCAB_SIZE, 60)


def with_scaled(checkpoint: Path, copy: Path, tensor: str, factor: float = 1.02) -> Path:
    """A checkpoint with half of one tensor wrong, as if it had been pruned like that."""

    def scale(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        weights[tensor][..., ::2] *= factor
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return altered(checkpoint, copy, scale)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("plan", ["mixed", "partial_heads"])
def test_pruned_layers_are_what_the_plan_makes_of_the_dense_ones(
    tiny_exports: TinyExports, family: str, plan: str
) -> None:
    pruned, dense = (tiny_checkpoint(tiny_exports.root, family, name) for name in (plan, "dense"))
    folds = check_folds(pruned, dense, IDS)
    assert [layer.name for layer in folds.layers] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert max(layer.error_ratio for layer in folds.layers) < 1e-6
    assert folds.bound == 1e-5


@pytest.mark.parametrize(
    ("family", "tensor", "layer"),
    [
        ("llama", "model.layers.1.self_attn.o_proj.weight", "layer 1"),
        ("gemma2", "model.layers.1.post_attention_layernorm.weight", "layer 1"),
        ("qwen2", "model.layers.1.self_attn.o_proj.bias", "layer 1"),
        ("mistral", "model.layers.2.self_attn.q_proj.weight", "layer 2"),
    ],
)
def test_a_wrong_tensor_shows_in_its_layer_alone(
    tiny_exports: TinyExports, tmp_path: Path, family: str, tensor: str, layer: str
) -> None:
    pruned, dense = (tiny_checkpoint(tiny_exports.root, family, name) for name in ("mixed", "dense"))
    folds = check_folds(with_scaled(pruned, tmp_path / "wrong", tensor), dense, IDS)
    assert [each.name for each in folds.layers if each.error_ratio > folds.bound] == [layer]


def test_fitted_layers_have_no_dense_counterpart_and_are_left_out(tiny_exports: TinyExports) -> None:
    pruned, dense = (tiny_checkpoint(tiny_exports.root, "llama", name) for name in ("linear", "dense"))
    folds = check_folds(pruned, dense, IDS)
    assert 0 < len(folds.layers) < 4
    assert max(layer.error_ratio for layer in folds.layers) < 1e-6


def test_verify_names_the_wrongly_folded_layer_of_an_engine_that_agrees_with_its_checkpoint(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    pruned, dense = (tiny_checkpoint(tiny_exports.root, "llama", name) for name in ("mixed", "dense"))
    wrong = with_scaled(pruned, tmp_path / "wrong", "model.layers.1.self_attn.o_proj.weight")
    export(wrong, tmp_path / "onnx")
    build(tmp_path / "onnx", tmp_path / "engine")
    options = VerifyOptions(prompt_lengths=(12, 7), decode_steps=8, threads=1)
    verify(tmp_path / "engine", wrong, options=options).require_passed()
    report = verify(tmp_path / "engine", wrong, options=replace(options, dense=dense))
    assert [check.name for check in report.checks if not check.passed] == ["folded layers"]
    with pytest.raises(CheckFailed, match=r"under its plan, layer 1: .*Fix: prune again with that plan"):
        report.require_passed()
