"""Run a command in a process of its own, and say how long it took, how much memory and how much disk it held.

Nothing here may load a framework: Linux counts the memory of the process that starts another one as the other's peak.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.25


class CommandFailed(Exception):  # noqa: N818 - an outcome that the result records
    """The command left with an error; says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a command took.

    Attributes:
        seconds: until all that it wrote is on the disk: some commands wait for that themselves, and some leave
            gigabytes to be written after they have ended.
        cpu_seconds: of all its threads and children.
        peak_rss_bytes: resident memory of its largest process, as `/usr/bin/time -v` says.
        peak_disk_bytes: most that lay in the watched folder, less what lay there before.
        disk_bytes: what lies there in the end, likewise.
    """

    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    peak_disk_bytes: int
    disk_bytes: int


def measure(command: Sequence[str], *, watch: Path, log: Path) -> Measured:
    """Run a command to its end.

    Args:
        command: the program and its arguments.
        watch: the folder that it writes into.
        log: file for what it prints.

    Raises:
        CommandFailed: it left with an error.
    """
    before = folder_bytes(watch)
    largest, ended = [before], threading.Event()

    def poll() -> None:
        while not ended.wait(POLL_SECONDS):
            largest.append(max(largest.pop(), folder_bytes(watch)))

    poller = threading.Thread(target=poll)
    with log.open("wb") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"HF_HUB_OFFLINE": "1"}
        )
        poller.start()
        _, status, usage = os.wait4(child.pid, 0)
        os.sync()
        seconds = time.perf_counter() - started
        ended.set()
        poller.join()
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        said = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise CommandFailed(f"exit code {child.returncode}, and it said: {said[-1][:300]}")
    after = folder_bytes(watch)
    return Measured(
        seconds=round(seconds, 2),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
        peak_rss_bytes=usage.ru_maxrss * 1024,
        peak_disk_bytes=max(*largest, after) - before,
        disk_bytes=after - before,
    )


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder, while files in it come and go."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except FileNotFoundError:
                continue
    return total


def forget_cached(folder: Path) -> None:
    """Write a folder's files back and drop them from the page cache, so that the next reader reads the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
