from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from hlap_export.artifacts import (
    Manifest,
    file_records,
    folder_digest,
    is_intact,
    read_manifest,
    require_free,
    write_manifest,
    write_text_whole,
    written_whole,
)
from hlap_export.errors import ArtefactError, OutputError


@pytest.fixture
def artefact(tmp_path: Path) -> Path:
    out = tmp_path / "artefact"
    with written_whole(out) as folder:
        (folder / "deep").mkdir()
        (folder / "deep/a.bin").write_bytes(b"abc")
        (folder / "b.txt").write_text("hello")
        write_manifest(folder, kind="sample", parameters={"n": 1}, inputs={"model": "d1"}, facts={"size_bytes": 8})
    return out


def test_a_manifest_records_each_file_by_its_sha256_and_size(artefact: Path) -> None:
    files = {name: record.model_dump() for name, record in read_manifest(artefact).files.items()}
    assert files == {
        "b.txt": {"sha256": hashlib.sha256(b"hello").hexdigest(), "size_bytes": 5},
        "deep/a.bin": {"sha256": hashlib.sha256(b"abc").hexdigest(), "size_bytes": 3},
    }


def test_a_manifest_says_again_what_it_was_given(artefact: Path) -> None:
    manifest = read_manifest(artefact)
    assert (manifest.kind, manifest.parameters, manifest.inputs) == ("sample", {"n": 1}, {"model": "d1"})
    assert manifest.facts == {"size_bytes": 8}
    assert Manifest.from_text(manifest.to_text()) == manifest


def test_an_artefact_inside_is_known_by_its_manifest_alone(artefact: Path) -> None:
    with written_whole(artefact / "inner") as folder:
        (folder / "c.txt").write_text("inner")
        write_manifest(folder, kind="sample", parameters={}, inputs={})
    assert set(file_records(artefact)) == {"b.txt", "deep/a.bin", "inner/manifest.json"}


def test_a_fresh_artefact_is_intact(artefact: Path) -> None:
    assert is_intact(artefact, read_manifest(artefact, kind="sample"))


@pytest.mark.parametrize("damage", ["change", "add", "remove"])
def test_a_changed_added_or_removed_file_is_noticed(artefact: Path, damage: str) -> None:
    if damage == "change":
        (artefact / "b.txt").write_text("hellO")
    elif damage == "add":
        (artefact / "deep/new").touch()
    else:
        (artefact / "b.txt").unlink()
    assert not is_intact(artefact, read_manifest(artefact))


def test_the_digest_of_a_plain_folder_is_that_of_its_content_not_of_its_place_or_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("same")
    os.utime(tmp_path / "two/a.txt", (0, 0))
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    (tmp_path / "two/a.txt").rename(tmp_path / "two/b.txt")
    assert folder_digest(tmp_path / "one") != folder_digest(tmp_path / "two")


def test_a_folder_of_another_kind_is_refused(artefact: Path) -> None:
    with pytest.raises(ArtefactError, match="kind 'sample'"):
        read_manifest(artefact, kind="engine")


@pytest.mark.parametrize("content", [None, "{", '{"kind": "onnx"}'])
def test_a_missing_or_broken_manifest_is_an_error_that_names_the_place(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtefactError, match=str(tmp_path)):
        read_manifest(tmp_path)


def test_an_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    def write_half() -> None:
        with written_whole(tmp_path / "out") as folder:
            (folder / "half").touch()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert list(tmp_path.iterdir()) == []


def test_what_a_kill_left_behind_does_not_get_into_the_next_result(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial/stale").touch()
    with written_whole(tmp_path / "out") as folder:
        (folder / "fresh").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fresh"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_result_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    with written_whole(tmp_path / "out") as folder:
        (folder / "file").touch()
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out/file").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_output_error_that_says_so_and_leaves_nothing(tmp_path: Path, code: int) -> None:
    def fill() -> None:
        with written_whole(tmp_path / "out") as folder:
            (folder / "half").touch()
            raise OSError(code, os.strerror(code))

    with pytest.raises(OutputError, match="disk is full"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_in_it_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(OutputError):
            require_free(path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_text_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "deep/result.json"
    write_text_whole(target, "old")

    def full(self: Path, text: str, encoding: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_text_whole(target, "new")
    monkeypatch.undo()
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["result.json"]
