"""What a model's digest depends on, and what is never read for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export.artifacts import folder_digest, read_manifest
from hlap_export.checkpoint import digest, read_layout
from hlap_export.checkpoint.digest import model_digest
from hlap_export.prune import prune
from tests.plans import tiny_plan
from tests.tiny import save_tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = save_tiny(tmp_path / "model", "llama", shard_size="60KB")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_weights_that_lie_there_once_more_are_neither_read_nor_counted(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = folder_digest(model)
    (model / "original").mkdir()
    others = ("original/consolidated.00.pth", "consolidated.safetensors", "model.safetensors", "pytorch_model.bin")
    for name in others:
        (model / name).write_bytes(b"the same weights")
    read: list[str] = []
    hashed = digest.file_sha256
    monkeypatch.setattr(digest, "file_sha256", lambda path: read.append(path.name) or hashed(path))
    assert model_digest(model) == expected
    assert not {Path(name).name for name in others} & set(read)


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "model-00002-of-*.safetensors"]
)
def test_every_file_that_is_read_counts(model: Path, name: str) -> None:
    before = model_digest(model)
    (path,) = model.glob(name)
    path.write_bytes(path.read_bytes() + b" ")
    assert model_digest(model) != before


def test_one_file_of_weights_counts_where_there_is_no_index(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama")
    assert model_digest(model) == folder_digest(model)


def test_an_artefact_is_known_by_its_manifest(model: Path, tmp_path: Path) -> None:
    prune(model, tiny_plan("suffix", read_layout(model)), tmp_path / "pruned")
    assert model_digest(tmp_path / "pruned") == read_manifest(tmp_path / "pruned").digest
    assert read_manifest(tmp_path / "pruned").inputs == {"model": model_digest(model)}
