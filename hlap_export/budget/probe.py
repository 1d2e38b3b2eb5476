"""How fast this machine is, measured in about a second: a file written, read and hashed, and two matrix products."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from hlap_export.budget.needs import Speeds

# Far below any machine of today: what would be quick even so needs no probe and no announcement.
ASSUMED_SLOWEST = Speeds(read_bytes=100e6, write_bytes=50e6, hash_bytes=200e6, multiplications=2e9, memory_bytes=1e9)

PROBE_BYTES = 64 * 2**20
CHUNK_BYTES = 4 * 2**20
MATRIX_SIZE = 1024


def measure_speeds(folder: Path, *, multiplies: bool) -> Speeds:
    """Measure the disk that `folder` is on, or will be on, and the processor.

    Args:
        folder: where the output goes.
        multiplies: whether the processor is to be timed too; it loads torch.
    """
    exists = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    write, read = _disk_speed(exists, exists.stat().st_dev)
    multiplications, memory = ASSUMED_SLOWEST.multiplications, ASSUMED_SLOWEST.memory_bytes
    if multiplies:
        multiplications, memory = _arithmetic_speed()
    return Speeds(
        read_bytes=read,
        write_bytes=write,
        hash_bytes=_hash_speed(),
        multiplications=multiplications,
        memory_bytes=memory,
    )


_known_disks: dict[int, tuple[float, float]] = {}


def _disk_speed(folder: Path, device: int) -> tuple[float, float]:
    """Bytes per second (written, read) of a file on this disk, the page cache left out where the system allows."""
    if device not in _known_disks:
        chunk = os.urandom(CHUNK_BYTES)  # some disks compress zeros away
        with tempfile.TemporaryFile(dir=folder) as file:

            def write() -> None:
                for _ in range(PROBE_BYTES // CHUNK_BYTES):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())

            def read() -> None:
                file.seek(0)
                while file.read(CHUNK_BYTES):
                    pass

            writing = _seconds(write)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _known_disks[device] = PROBE_BYTES / writing, PROBE_BYTES / _seconds(read)
    return _known_disks[device]


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
