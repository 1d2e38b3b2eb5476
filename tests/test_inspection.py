from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export.errors import ArtefactError, CheckpointError, PlanError
from hlap_export.inspection import inspect
from hlap_export.terminal import render
from tests.export.exports import TinyExports
from tests.tiny import save_tiny, tiny_model
from tests.tiny_run import FinishedRun

KINDS = {
    "checkpoint": "pruned checkpoint",
    "plan.json": "plan",
    "onnx/pruned": "ONNX export",
    "engine/pruned": "engine",
    ".": "run",
}


@pytest.mark.parametrize("name", KINDS)
def test_every_artefact_of_a_run_is_recognised_and_shows_the_same_layers(finished: FinishedRun, name: str) -> None:
    found = inspect(finished.out / name)
    assert found.kind == KINDS[name]
    assert found.family == "llama"
    assert [row.attention for row in found.layers] == [row.attention for row in finished.summary.layers]
    assert render(found)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_checkpoint_is_described_from_its_headers(tmp_path: Path, dtype: str) -> None:
    import torch

    model = save_tiny(tmp_path / "model", "gemma2", dtype=getattr(torch, dtype), shard_size="40KB")
    found = inspect(model)
    assert found.kind == "dense checkpoint"
    assert found.facts["num_parameters"] == sum(p.numel() for p in tiny_model("gemma2").parameters())
    itemsize = {"float32": 4, "bfloat16": 2}[dtype]
    assert found.facts["kv_bytes_per_token"] == 4 * 2 * 2 * 16 * itemsize
    assert found.is_intact is None


def test_files_that_were_changed_are_noticed(finished: FinishedRun, tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(finished.out / "engine/pruned", tmp_path / "engine")
    assert inspect(copy).is_intact is True
    (copy / "tokenizer.json").write_text("{}")
    assert inspect(copy).is_intact is False
    assert inspect(copy, check_files=False).is_intact is None


def test_what_is_no_artefact_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/config.json").write_text('{"model_type": "bert"}')
    for path, error in (
        (tmp_path / "none", ArtefactError),
        (tmp_path, ArtefactError),
        (tmp_path / "notes.txt", ArtefactError),
        (tmp_path / "other.json", PlanError),
        (tmp_path / "bert", CheckpointError),
    ):
        with pytest.raises(error):
            inspect(path)


def test_an_export_for_a_compiler_says_which_layers_lack_its_kernels(tiny_exports: TinyExports) -> None:
    told = inspect(tiny_exports.get("llama", "partial_heads", "float16", "trt").folder).facts["attention_kernels"]
    best, few, alone = str(told).split("; ")
    assert best == "2 of 4 layers have the best"
    assert few.startswith("layer 1: 3 query heads")
    assert alone.startswith("layer 3: one query head")
