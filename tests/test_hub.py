from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from hlap_export import reference_model
from hlap_export.errors import CheckpointError
from hlap_export.hub import model_name, resolve_model


def test_no_model_is_the_reference_model() -> None:
    assert resolve_model(None) == reference_model.path()
    assert model_name(None) == "reference model"


def test_a_folder_is_itself_even_when_it_looks_like_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("org/model") == Path("org/model")


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "../none", "a/b/c"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve_model(path)


def test_a_hub_id_is_downloaded_without_pickles_or_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked[hub_id] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("org/model") == tmp_path
    (patterns,) = asked.values()
    assert "*.safetensors" in patterns  # type: ignore[operator]
    assert not {"*.bin", "*.py", "*"} & set(patterns)  # type: ignore[call-overload]


def test_without_a_network_the_error_says_both_places_that_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(hub_id: str, *, allow_patterns: list[str]) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="no such folder here, and the hub can't be reached"):
        resolve_model("org/model")
