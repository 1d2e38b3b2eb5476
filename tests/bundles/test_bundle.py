from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from hlap_export import inspect
from hlap_export.artifacts import folder_digest, is_intact
from hlap_export.bundles import bundle
from hlap_export.errors import ArtefactError, BundleError, OutputError
from tests.bundles.bundled import TinyBundles
from tests.test_cli import exit_code
from tests.tiny_engines import altered


@pytest.fixture
def engine(tiny_bundles: TinyBundles) -> Path:
    return tiny_bundles.get("llama", "mixed").engine


def test_onnx_itself_accepts_the_graphs_of_bundle_and_engine(engine: Path, tmp_path: Path) -> None:
    bundle(engine, tmp_path / "bundle")
    for folder in (tmp_path / "bundle", engine):  # onnx refuses weights that have a second hard link
        assert onnx.load(folder / "model.onnx").graph.node


def test_a_bundle_knows_its_engine_and_is_whole(engine: Path, tmp_path: Path) -> None:
    manifest = bundle(engine, tmp_path / "bundle")
    assert manifest.kind == "bundle"
    assert manifest.inputs == {"engine": folder_digest(engine)}
    assert manifest.parameters["target"] == "ort-genai"
    assert is_intact(tmp_path / "bundle", manifest)


def test_inspect_describes_a_bundle(tiny_bundles: TinyBundles) -> None:
    found = inspect(tiny_bundles.get("llama", "mixed").folder)
    assert (found.kind, found.family, found.parameters["target"]) == ("bundle", "llama", "ort-genai")
    assert [layer.attention for layer in found.layers] == ["full", "value_only", "full", "skip"]


def test_an_unknown_target_a_changed_engine_and_other_folders_are_refused(
    tiny_bundles: TinyBundles, engine: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(BundleError, match="ort-genai"):
        bundle(engine, out, target="triton")
    with pytest.raises(ArtefactError, match="kind 'engine'"):
        bundle(tiny_bundles.get("llama", "mixed").checkpoint, out)
    with pytest.raises(OutputError, match="new or empty"):
        bundle(engine, engine)
    changed = altered(engine, tmp_path / "changed", lambda copy: None)
    (changed / "config.json").write_text((changed / "config.json").read_text() + " ")
    with pytest.raises(ArtefactError, match="different bytes"):
        bundle(changed, out)
    assert not out.exists()


def test_the_command_line_bundles_and_says_what_came_out(
    engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("bundle", engine, "--target", "ort-genai", "--out", tmp_path / "bundle", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "bundle"
    assert exit_code("bundle", engine, "--target", "nowhere", "--out", tmp_path / "other") == 2
