from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.large_models import random_checkpoint
from benchmarks.large_models.random_checkpoint import SHAPES, write_random_checkpoint
from hlap_export.checkpoint import load_model, load_tokenizer
from hlap_export.checkpoint.layout import layout_of
from hlap_export.checkpoint.tensors import open_tensors

SMALL: dict[str, Any] = SHAPES["llama-30m"] | {"num_hidden_layers": 2, "vocab_size": 2048}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_seed_gives_the_same_bytes_however_many_threads_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small blocks, so that a tensor is made of many.
    monkeypatch.setattr(random_checkpoint, "BLOCK_VALUES", 10_000)
    one = write_random_checkpoint(tmp_path / "one", SMALL)
    monkeypatch.setattr(random_checkpoint, "THREADS", 5)
    assert contents(write_random_checkpoint(tmp_path / "two", SMALL)) == contents(one)
    other = contents(write_random_checkpoint(tmp_path / "other", SMALL, seed=1))
    assert [name for name, content in contents(one).items() if other[name] != content] == ["model.safetensors"]


def test_it_is_a_model_in_shards_whose_logits_are_of_ordinary_size(tmp_path: Path) -> None:
    folder = write_random_checkpoint(tmp_path / "model", SMALL, shard_bytes=4_000_000)
    assert len(open_tensors(folder).shards) > 2
    ids = load_tokenizer(folder)("A text of a few words", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = load_model(folder, dtype=torch.float32)(input_ids=ids).logits
    assert 0.5 < float(logits.std()) < 2


@pytest.mark.parametrize(("shape", "parameters"), [("llama-3.1-8b", 8_030_261_248), ("llama-3.2-1b", 1_235_814_400)])
def test_the_shapes_have_the_published_numbers_of_parameters(shape: str, parameters: int, tmp_path: Path) -> None:
    layout = layout_of(SHAPES[shape])
    attention = 2 * layout.hidden_size * layout.head_dim * (layout.num_heads + layout.num_kv_heads)
    layer = attention + 3 * layout.hidden_size * layout.intermediate_size + 2 * layout.hidden_size
    embeddings = layout.vocab_size * layout.hidden_size * (1 if layout.tied_embeddings else 2)
    assert layout.num_layers * layer + embeddings + layout.hidden_size == parameters
