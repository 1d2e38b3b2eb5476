"""SHA-256 of files, without reading a byte twice: hash while writing, hash while reading, remember what is known.

SHA-256 takes about as long as copying, so it runs on a thread of its own beside the copying (hashlib releases the
interpreter's lock). What this process has hashed it remembers for as long as the file's size and time stay the same.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict

from hlap_export.direct_file import DirectFile
from hlap_export.errors import CheckpointError

CHUNK_BYTES = 4 * 2**20
# Chunks that may wait for the hashing thread: the memory that reading ahead of it may take.
MAX_WAITING = 4
READ_AHEAD_BYTES = 16 * 2**20
# A file changed again within the resolution of its time can't be told from what was hashed; git keeps its index from
# "racily clean" entries the same way.
SETTLED_SECONDS = 2.0

Buffer = bytes | memoryview
_Identity = tuple[int, int, int, int]
_known: dict[_Identity, str] = {}


class FileRecord(BaseModel):
    """What one file consists of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    size_bytes: int


def file_sha256(path: Path) -> str:
    """The file's digest; remembered for as long as the file stays as it is."""
    known = known_sha256(path)
    if known is None:
        before = path.stat()
        with path.open("rb") as file:
            known = hashlib.file_digest(file, "sha256").hexdigest()
        remember_sha256(path, known, since=before)
    return known


def known_sha256(path: Path) -> str | None:
    """The file's digest if this process knows it already."""
    return _known.get(_identity(path.stat()))


def remember_sha256(path: Path, sha256: str, *, since: os.stat_result) -> None:
    """Keep a file's digest, unless the file has changed or has been written to a moment ago.

    Args:
        path: the file.
        sha256: its digest.
        since: what `stat` said before it was hashed.
    """
    identity = _identity(path.stat())
    if identity == _identity(since) and time.time() - since.st_mtime > SETTLED_SECONDS:
        _known[identity] = sha256


def _identity(stat: os.stat_result) -> _Identity:
    # Not the path: a file that is renamed or linked is still the same.
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


class StreamHash:
    """SHA-256 of chunks that come one after another, computed on a thread; chunks mustn't be changed afterwards."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._waiting: deque[Future[None]] = deque()

    def update(self, chunk: Buffer) -> None:
        self._waiting.append(self._thread.submit(self._sha256.update, chunk))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().result()

    def hexdigest(self) -> str:
        while self._waiting:
            self._waiting.popleft().result()
        return self._sha256.hexdigest()

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)


class HashingWriter:
    """A new file that is hashed while it is written, and on the disk, not merely on its way, when the block ends well.

    `record` says what it consists of, once the block has ended.
    """

    record: FileRecord

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0

    def __enter__(self) -> Self:
        self._file = DirectFile(self._path)
        self._hash = StreamHash()
        return self

    @property
    def size_bytes(self) -> int:
        """Bytes written so far: where the next ones will lie."""
        return self._size

    def write(self, data: Buffer) -> None:
        """Append bytes, which mustn't be changed afterwards: they may still be waiting to be hashed."""
        self._file.write(data)
        self._hash.update(data)
        self._size += len(data) if isinstance(data, bytes) else data.nbytes

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.sync()
                self.record = FileRecord(sha256=self._hash.hexdigest(), size_bytes=self._size)
        finally:
            self._hash.close()
            self._file.close()


class HashingReader:
    """A file that is read once, from front to back, and hashed as it goes by, the skipped parts included.

    A file whose digest is known already is only read where it is asked for.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256 = known_sha256(path)
        self._at = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("rb", buffering=0)
        self._stat = os.fstat(self._file.fileno())
        self._hash = StreamHash()
        return self

    def chunks(self, start: int, size_bytes: int) -> Iterator[bytes]:
        """The bytes from `start` on, which mustn't lie before what was read last."""
        self._pass_over(start)
        yield from self._read_until(start + size_bytes)

    def sha256(self) -> str:
        """The whole file's digest; reads to its end."""
        if self._sha256 is None:
            self._pass_over(self._stat.st_size)
            self._sha256 = self._hash.hexdigest()
            remember_sha256(self._path, self._sha256, since=self._stat)
        return self._sha256

    def _pass_over(self, end: int) -> None:
        if self._sha256 is None:
            for _ in self._read_until(end):
                pass
        else:
            self._at = self._file.seek(end)

    def _read_until(self, end: int) -> Iterator[bytes]:
        announced = self._at
        while self._at < end:
            if self._at >= announced - READ_AHEAD_BYTES // 2:
                announced = self._announce(announced, end)
            chunk = self._file.read(min(CHUNK_BYTES, end - self._at))
            if not chunk:
                raise CheckpointError(
                    where=str(self._path),
                    expected=f"{self._stat.st_size} bytes, as when it was opened",
                    found=f"that it has become shorter while it was read: it ends at byte {self._at}",
                    fix="let nothing else write the file, restore it, and run again",
                )
            if self._sha256 is None:
                self._hash.update(chunk)
            self._at += len(chunk)
            yield chunk

    def _announce(self, start: int, end: int) -> int:
        """Have the system read the next bytes up to `end` in one go, which costs half of what small pieces do."""
        stop = min(start + READ_AHEAD_BYTES, end)
        if stop > start and hasattr(os, "posix_fadvise"):  # on Linux
            os.posix_fadvise(self._file.fileno(), start, stop - start, os.POSIX_FADV_WILLNEED)
        return stop

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hash.close()
        self._file.close()
