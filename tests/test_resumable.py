from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from hlap_export import resumable as resumable_module
from hlap_export.artifacts import move_into_place
from hlap_export.errors import OutputError
from hlap_export.resumable import resumable


class StoppedError(Exception):
    """What a test interrupts a writing with."""


def write_and_stop(out: Path, names: str) -> None:
    with resumable(out, request="r") as work:
        for name in names:
            with work.new_file(name) as file:
                file.write(name.encode())
            work.finish_input(f"source of {name}", "digest")
        with work.new_file("z") as file:
            file.write(b"half of it")
            raise StoppedError


def stop_after(out: Path, names: str) -> None:
    """Write files of one letter each, then stop in the middle of another."""
    with pytest.raises(StoppedError):
        write_and_stop(out, names)


def finish(out: Path, *, request: str = "r") -> dict[str, str]:
    """What was found finished, with its digest."""
    with resumable(out, request=request) as work:
        return {name: record.sha256 for name, record in work.files.items()}


def test_finished_files_are_found_again_with_their_digests(tmp_path: Path) -> None:
    stop_after(tmp_path / "out", "ab")
    found = finish(tmp_path / "out")
    assert found == {name: hashlib.sha256(name.encode()).hexdigest() for name in "ab"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]


def test_finished_inputs_are_found_again(tmp_path: Path) -> None:
    stop_after(tmp_path / "out", "ab")
    with resumable(tmp_path / "out", request="r") as work:
        assert work.inputs == {"source of a": "digest", "source of b": "digest"}


def test_another_request_starts_from_nothing(tmp_path: Path) -> None:
    stop_after(tmp_path / "out", "ab")
    assert finish(tmp_path / "out", request="other") == {}
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("damage", ["shorter file", "missing file", "broken journal", "missing journal"])
def test_what_cannot_be_trusted_is_started_anew(tmp_path: Path, damage: str) -> None:
    stop_after(tmp_path / "out", "ab")
    partial, journal = tmp_path / ".out.partial", tmp_path / ".out.partial.json"
    match damage:
        case "shorter file":
            (partial / "a").write_bytes(b"")
        case "missing file":
            (partial / "a").unlink()
        case "broken journal":
            journal.write_text(journal.read_text()[:-10])
        case _:
            journal.unlink()
    assert finish(tmp_path / "out") == {}
    assert list((tmp_path / "out").iterdir()) == []


def test_half_written_files_and_strange_folders_do_not_get_into_the_result(tmp_path: Path) -> None:
    stop_after(tmp_path / "out", "a")
    (tmp_path / ".out.partial/b.partial").write_bytes(b"half")
    (tmp_path / ".out.partial/folder").mkdir()
    finish(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_a_failure_before_anything_is_finished_leaves_nothing(tmp_path: Path) -> None:
    stop_after(tmp_path / "out", "")
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_are_refused_and_the_first_one_finishes(tmp_path: Path) -> None:
    with resumable(tmp_path / "out", request="r") as work:
        with work.new_file("a") as file:
            file.write(b"a")
        with pytest.raises(OutputError, match="another process"), resumable(tmp_path / "out", request="r"):
            pass
    assert (tmp_path / "out/a").read_bytes() == b"a"


def test_a_kill_right_after_the_result_has_appeared_leaves_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved_and_killed(partial: Path, out: Path) -> None:
        move_into_place(partial, out)
        raise StoppedError

    def write() -> None:
        with resumable(tmp_path / "out", request="r") as work, work.new_file("a") as file:
            file.write(b"a")

    monkeypatch.setattr(resumable_module, "move_into_place", moved_and_killed)
    with pytest.raises(StoppedError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_was_taken_meanwhile_costs_nothing_that_is_finished(tmp_path: Path) -> None:
    def write() -> None:
        with resumable(tmp_path / "out", request="r") as work:
            with work.new_file("a") as file:
                file.write(b"a")
            (tmp_path / "out").mkdir()
            (tmp_path / "out/mine").touch()

    with pytest.raises(OutputError, match="folder with files"):
        write()
    (tmp_path / "out/mine").unlink()
    assert finish(tmp_path / "out").keys() == {"a"}


def test_an_occupied_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(OutputError, match="folder with files"), resumable(tmp_path, request="r"):
        pass
