from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from hlap_export import digests
from hlap_export.digests import HashingReader, HashingWriter, file_sha256, known_sha256
from hlap_export.errors import CheckpointError

LONG_AGO = 1_600_000_000
# More than one chunk, and no whole number of them.
CONTENT = os.urandom(digests.CHUNK_BYTES * 2 + 12345)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def old_file(folder: Path, content: bytes = CONTENT) -> Path:
    path = folder / "data"
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def test_a_file_that_stays_as_it_is_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_file(tmp_path)
    assert file_sha256(path) == SHA256
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    path = path.rename(tmp_path / "moved")
    assert file_sha256(path) == SHA256


@pytest.mark.parametrize("moment", [LONG_AGO, LONG_AGO + 1e-3])
def test_a_file_of_another_size_or_time_is_hashed_again(tmp_path: Path, moment: float) -> None:
    path = old_file(tmp_path)
    assert file_sha256(path) == SHA256
    changed = CONTENT[:-1] if moment == LONG_AGO else CONTENT[::-1]
    path.write_bytes(changed)
    os.utime(path, (moment, moment))
    assert file_sha256(path) == hashlib.sha256(changed).hexdigest()


def test_a_file_written_a_moment_ago_is_not_remembered(tmp_path: Path) -> None:
    """It may be written again within the clock's tick, and then looks the same."""
    path = tmp_path / "new"
    path.write_bytes(b"one")
    stat = path.stat()
    file_sha256(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_a_writer_knows_what_it_wrote(tmp_path: Path) -> None:
    with HashingWriter(tmp_path / "out") as file:
        for start in range(0, len(CONTENT), 70_000):
            assert file.size_bytes == start
            file.write(memoryview(CONTENT)[start : start + 70_000])
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert (file.record.sha256, file.record.size_bytes) == (SHA256, len(CONTENT))


@pytest.mark.parametrize("parts", [[], [(0, 10)], [(5, 7_000_000), (7_000_005, 1)], [(len(CONTENT) - 3, 3)]])
def test_a_reader_hashes_the_whole_file_whatever_was_asked_of_it(tmp_path: Path, parts: list[tuple[int, int]]) -> None:
    path = old_file(tmp_path)
    with HashingReader(path) as file:
        for start, size in parts:
            assert b"".join(file.chunks(start, size)) == CONTENT[start : start + size]
        assert file.sha256() == SHA256
    assert known_sha256(path) == SHA256


def test_a_reader_of_a_known_file_reads_only_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_file(tmp_path)
    file_sha256(path)
    monkeypatch.setattr(hashlib, "sha256", lambda: None)
    with HashingReader(path) as file:
        assert b"".join(file.chunks(100, 50)) == CONTENT[100:150]
        assert file.sha256() == SHA256


def test_a_file_that_changes_while_it_is_read_is_not_remembered(tmp_path: Path) -> None:
    path = old_file(tmp_path)
    with HashingReader(path) as file:
        list(file.chunks(0, 10))
        path.write_bytes(CONTENT)
        os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))
        file.sha256()
    assert known_sha256(path) is None


def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = old_file(tmp_path)
    with HashingReader(path) as file:
        os.truncate(path, 100)
        with pytest.raises(CheckpointError, match=r"shorter.*Fix: "):
            list(file.chunks(0, 1000))
