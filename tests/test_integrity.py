"""Any byte that is changed in a finished run is noticed, wherever it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hlap_export.artifacts import read_manifest, write_manifest, written_whole
from hlap_export.errors import ArtefactError, CheckFailed
from hlap_export.integrity import verify_manifest
from tests.tiny_run import FinishedRun


def small_run(folder: Path) -> Path:
    """A document, and an artefact below it."""
    with written_whole(folder / "onnx/dense") as inner:
        (inner / "model.onnx").write_bytes(b"graph")
        write_manifest(inner, kind="onnx", parameters={}, inputs={})
    (folder / "summary.json").write_text("{}")
    write_manifest(folder, kind="run", parameters={}, inputs={})
    return folder


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_run_as_it_was_written_is_intact(finished: FinishedRun) -> None:
    report = verify_manifest(finished.out)
    assert report.is_intact
    kinds = {artefact.name: artefact.kind for artefact in report.artefacts}
    assert kinds == {
        ".": "run",
        "checkpoint": "checkpoint",
        "engine/dense": "engine",
        "engine/pruned": "engine",
        "onnx/dense": "onnx",
        "onnx/pruned": "onnx",
    }
    digests = {artefact.name: artefact.digest for artefact in report.artefacts}
    made_from = {artefact.name: artefact.made_from for artefact in report.artefacts}
    assert made_from["engine/pruned"] == {"onnx": digests["onnx/pruned"]}
    assert made_from["onnx/pruned"] == {"checkpoint": digests["checkpoint"]}


def test_a_changed_byte_in_any_file_of_a_run_is_noticed_and_named(finished: FinishedRun, tmp_path: Path) -> None:
    run = shutil.copytree(finished.out, tmp_path / "run")
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    assert len(files) > 20
    for index, path in enumerate(files):
        original = path.read_bytes()
        flip(path, at=index * 7919 % len(original))
        problems = verify_manifest(run).problems
        assert path.relative_to(run).as_posix() in [problem.file for problem in problems], path
        path.write_bytes(original)
    assert verify_manifest(run).is_intact


@pytest.mark.parametrize("instead", [b"\r", b"\r\n", b""])
def test_any_byte_of_a_manifest_itself_that_is_changed_is_noticed(instead: bytes, tmp_path: Path) -> None:
    path = small_run(tmp_path / "run") / "manifest.json"
    original = path.read_bytes()
    for at in range(len(original)):
        path.write_bytes(original[:at] + instead + original[at + 1 :])
        with pytest.raises(ArtefactError, match="a manifest as hlap-export wrote it"):
            read_manifest(path.parent)
    assert [problem.damage for problem in verify_manifest(path.parent).problems] == ["manifest changed"]


@pytest.mark.parametrize("name", ["summary.json", "onnx/dense/model.onnx", "manifest.json", "onnx/dense/manifest.json"])
def test_a_removed_file_is_noticed(tmp_path: Path, name: str) -> None:
    run = small_run(tmp_path / "run")
    (run / name).unlink()
    if name == "manifest.json":
        with pytest.raises(ArtefactError, match="a run gets its manifest when it is finished"):
            verify_manifest(run)
    else:
        assert (name, "missing") in [(problem.file, problem.damage) for problem in verify_manifest(run).problems]


@pytest.mark.parametrize("name", ["extra.txt", "onnx/dense/extra.txt"])
def test_an_added_file_is_noticed(tmp_path: Path, name: str) -> None:
    run = small_run(tmp_path / "run")
    (run / name).touch()
    assert [(problem.file, problem.damage) for problem in verify_manifest(run).problems] == [(name, "added")]


def test_another_artefact_in_its_place_is_noticed_though_it_is_whole(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    shutil.rmtree(run / "onnx/dense")
    with written_whole(run / "onnx/dense") as inner:
        (inner / "model.onnx").write_bytes(b"other graph")
        write_manifest(inner, kind="onnx", parameters={}, inputs={})
    assert [problem.file for problem in verify_manifest(run).problems] == ["onnx/dense/manifest.json"]


def test_the_error_names_the_file_what_happened_to_it_and_how_many_others(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    (run / "summary.json").write_text("{} ")
    (run / "extra.txt").touch()
    with pytest.raises(CheckFailed, match=r"extra\.txt: .*found added, .*; and 1 more") as error:
        verify_manifest(run).require_intact()
    assert error.value.exit_code == 1
    (run / "extra.txt").unlink()
    with pytest.raises(CheckFailed, match=r"summary\.json: .*found changed, 3 bytes instead of 2\."):
        verify_manifest(run).require_intact()
