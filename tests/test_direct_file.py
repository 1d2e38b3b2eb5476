from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hlap_export import direct_file
from hlap_export.direct_file import BLOCK_BYTES, DirectFile

CONTENT = os.urandom(2 * BLOCK_BYTES + 12345)


def write(path: Path, *parts: bytes | memoryview) -> None:
    file = DirectFile(path)
    try:
        for part in parts:
            file.write(part)
        file.sync()
    finally:
        file.close()


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, len(CONTENT)])
def test_files_of_any_size_are_written_as_given(size: int, tmp_path: Path) -> None:
    write(tmp_path / "file", CONTENT[:size])
    assert (tmp_path / "file").read_bytes() == CONTENT[:size]


def test_parts_of_odd_sizes_and_kinds_follow_each_other(tmp_path: Path) -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    parts = [CONTENT[:7], memoryview(b""), matrix.data, np.zeros((0, 4)).data, memoryview(CONTENT)[7:]]
    write(tmp_path / "file", *parts)
    assert (tmp_path / "file").read_bytes() == CONTENT[:7] + matrix.tobytes() + CONTENT[7:]


def test_an_earlier_longer_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    write(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"


def refuse_at_once(real: Callable[..., int]) -> Callable[..., int]:
    """`os.open` of a file system without direct writes."""

    def opened(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, *mode)

    return opened


def refuse_later(real: Callable[..., int]) -> Callable[..., int]:
    """`os.write` of a file system that takes the flag, and then not the data."""

    def written(handle: int, data: memoryview) -> int:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(handle, data)

    return written


def write_little(real: Callable[..., int]) -> Callable[..., int]:
    """`os.write` that takes less than it is given, as a signal or an almost full disk makes it."""
    return lambda handle, data: real(handle, data[: max(1, len(data) // 3)] if len(data) > 99999 else data)


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="the system has no direct writes")
@pytest.mark.parametrize(
    ("call", "behaviour"), [("open", refuse_at_once), ("write", refuse_later), ("write", write_little)]
)
def test_where_direct_writes_do_not_work_the_cache_takes_them(
    call: str,
    behaviour: Callable[[Callable[..., int]], Callable[..., int]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_file.os, call, behaviour(getattr(os, call)))
    write(tmp_path / "file", CONTENT)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_full_disk_is_told_within_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(direct_file.os, "write", full)
    file = DirectFile(tmp_path / "file")
    with pytest.raises(OSError, match="No space left"):
        file.write(CONTENT)
    file.close()


def test_an_error_in_the_last_block_is_told_by_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = DirectFile(tmp_path / "file")
    with monkeypatch.context() as patched:
        patched.setattr(direct_file.os, "write", full)
        file.write(CONTENT[:BLOCK_BYTES])
        with pytest.raises(OSError, match="No space left"):
            file.sync()
    file.close()
