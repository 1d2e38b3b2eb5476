from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hlap_export.checkpoint.generation_config import read_generation_defaults
from hlap_export.errors import CheckpointError


def folder_with(folder: Path, config: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_generation_config_wins_over_config_where_it_says_something(tmp_path: Path) -> None:
    found = read_generation_defaults(
        folder_with(
            tmp_path,
            {"eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 9},
            {"eos_token_id": [7, 8], "bos_token_id": None, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
        )
    )
    assert (found.eos_token_ids, found.bos_token_id, found.pad_token_id) == ((7, 8), 1, 9)
    assert (found.do_sample, found.temperature, found.top_p) == (True, 0.6, 0.9)


def test_a_silent_folder_has_the_values_of_transformers(tmp_path: Path) -> None:
    found = read_generation_defaults(folder_with(tmp_path, {}))
    assert (found.eos_token_ids, found.bos_token_id, found.pad_token_id) == ((), None, None)
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (False, 1.0, 50, 1.0)


def test_one_stop_token_is_a_list_of_one(tmp_path: Path) -> None:
    assert read_generation_defaults(folder_with(tmp_path, {"eos_token_id": 0})).eos_token_ids == (0,)


@pytest.mark.parametrize("content", ["[1, 2]", "{", "null"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (folder_with(tmp_path, {}) / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match="generation_config"):
        read_generation_defaults(tmp_path)
