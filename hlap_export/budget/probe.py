"""How fast this machine is, measured in about a second: a file written, read and hashed, and two matrix products.

A step that writes nothing has nothing written for it: what it will read is read instead.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO

from hlap_export.budget.needs import Speeds

# Far below any machine of today: what would be quick even so needs no probe and no announcement.
ASSUMED_SLOWEST = Speeds(read_bytes=100e6, write_bytes=50e6, hash_bytes=200e6, multiplications=2e9, memory_bytes=1e9)

PROBE_BYTES = 64 * 2**20
CHUNK_BYTES = 4 * 2**20
MATRIX_SIZE = 1024


def measure_speeds(folder: Path, *, multiplies: bool, writes: bool = True) -> Speeds:
    """Measure the disk that `folder` is on, or will be on, and the processor.

    Args:
        folder: where the output goes, or what is read lies.
        multiplies: whether the processor is to be timed too; it loads torch.
        writes: whether a file may be written there, for a moment; else one that is there is read.
    """
    disk = _disk_speed(folder, writes=writes)
    write, read = disk or (ASSUMED_SLOWEST.write_bytes, ASSUMED_SLOWEST.read_bytes)
    multiplications, memory = ASSUMED_SLOWEST.multiplications, ASSUMED_SLOWEST.memory_bytes
    if multiplies:
        multiplications, memory = _arithmetic_speed()
    return Speeds(
        read_bytes=read,
        write_bytes=write,
        hash_bytes=_hash_speed(),
        multiplications=multiplications,
        memory_bytes=memory,
        disk_is_assumed=disk is None,
    )


_known_disks: dict[int, tuple[float, float]] = {}


def _disk_speed(folder: Path, *, writes: bool) -> tuple[float, float] | None:
    """Bytes per second (written, read) of a file on this disk; None where it can't be timed."""
    exists = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    device = exists.stat().st_dev
    try:
        if device not in _known_disks and writes:
            _known_disks[device] = _write_and_read(exists)
        return _known_disks.get(device) or _read_largest(exists)
    except OSError:  # read-only or full: the step itself says so where it matters
        return None


def _write_and_read(folder: Path) -> tuple[float, float]:
    """Of a new file, written to the disk and read from it again."""
    chunk = os.urandom(CHUNK_BYTES)  # some disks compress zeros away
    with tempfile.TemporaryFile(dir=folder) as file:

        def write() -> None:
            for _ in range(PROBE_BYTES // CHUNK_BYTES):
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())

        return PROBE_BYTES / _seconds(write), _read_speed(file)


def _read_largest(folder: Path) -> tuple[float, float] | None:
    """Of the largest file in the folder, where there is one; how fast it would be written isn't known."""
    sizes = {path: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    largest = max(sizes, key=sizes.__getitem__, default=None)
    if largest is None or not sizes[largest]:
        return None
    with largest.open("rb") as file:
        return ASSUMED_SLOWEST.write_bytes, _read_speed(file)


def _read_speed(file: IO[bytes]) -> float:
    """Of a file's first bytes, the page cache left out where the system allows."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, PROBE_BYTES, os.POSIX_FADV_DONTNEED)
    file.seek(0)
    num_bytes = 0

    def read() -> None:
        nonlocal num_bytes
        while num_bytes < PROBE_BYTES and (chunk := file.read(CHUNK_BYTES)):
            num_bytes += len(chunk)

    seconds = _seconds(read)
    return num_bytes / seconds


@cache
def _hash_speed() -> float:
    data = bytes(PROBE_BYTES // 2)
    return len(data) / _seconds(lambda: hashlib.sha256(data).digest())


@cache
def _arithmetic_speed() -> tuple[float, float]:
    """Multiply-adds per second in float32, and bytes of a matrix per second that one vector is multiplied by."""
    import torch

    square = torch.ones(MATRIX_SIZE, MATRIX_SIZE)
    tall, vector = torch.ones(PROBE_BYTES // 4 // MATRIX_SIZE, MATRIX_SIZE), torch.ones(MATRIX_SIZE)
    # The first call of each allocates and starts the threads.
    product = min(_seconds(lambda: torch.mm(square, square)) for _ in range(4))
    traversal = min(_seconds(lambda: torch.mv(tall, vector)) for _ in range(4))
    return MATRIX_SIZE**3 / product, tall.nbytes / traversal


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return max(time.perf_counter() - started, 1e-9)
