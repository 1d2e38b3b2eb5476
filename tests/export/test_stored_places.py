"""Where a checkpoint keeps its weights changes nothing in the export: shards, and the name of a tied pair."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export.artifacts import read_manifest
from hlap_export.checkpoint.tensors import open_tensors
from hlap_export.export import export
from tests.tiny import save_tiny, store_tied_pair_as_head


def exported_digests(checkpoint: Path, out: Path, flavour: str, dtype: str) -> dict[str, str]:
    """SHA-256 of the graph and of its weights."""
    export(checkpoint, out, flavour=flavour, dtype=dtype)
    files = {name: record.sha256 for name, record in read_manifest(out).files.items()}
    return {name: sha256 for name, sha256 in files.items() if name.startswith("model.onnx")}


@pytest.mark.parametrize(("family", "flavour", "dtype"), [("qwen2", "portable", "float32"), ("gemma2", "ort", "int4")])
def test_shards_give_the_same_export_as_one_file(family: str, flavour: str, dtype: str, tmp_path: Path) -> None:
    one = save_tiny(tmp_path / "one", family)
    shards = save_tiny(tmp_path / "shards", family, shard_size="60KB")
    data_starts = [shard.data_start for shard in open_tensors(shards).shards]
    assert len(set(data_starts)) > 2
    expected = exported_digests(one, tmp_path / "from_one", flavour, dtype)
    assert len(expected) == 2
    assert exported_digests(shards, tmp_path / "from_shards", flavour, dtype) == expected


@pytest.mark.parametrize(("flavour", "dtype"), [("portable", "float32"), ("ort", "int4")])
def test_a_tied_pair_gives_the_same_export_under_either_name(flavour: str, dtype: str, tmp_path: Path) -> None:
    embedding = save_tiny(tmp_path / "embedding", "llama")
    head = store_tied_pair_as_head(save_tiny(tmp_path / "head", "llama"))
    assert exported_digests(head, tmp_path / "from_head", flavour, dtype) == exported_digests(
        embedding, tmp_path / "from_embedding", flavour, dtype
    )
