"""Say what a step will need before it begins, and stop where the machine hasn't got it."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from pathlib import Path

from hlap_export.budget.needs import Needs, Speeds, in_time, in_words, work_in_words
from hlap_export.budget.probe import ASSUMED_SLOWEST, measure_speeds
from hlap_export.errors import BudgetError
from hlap_export.machine import disk_free_bytes, memory_available_bytes, memory_used_bytes
from hlap_export.report.wording import in_bytes

# Steps below both go unannounced.
LONG_SECONDS = 20.0
MUCH_MEMORY_BYTES = 2**30

Tell = Callable[[str], None]


class Budget:
    """What steps may use: the machine's free memory and disk, and no more memory than the user allows.

    Args:
        max_memory: bytes that one step may hold; None for whatever is free.
        tell: called with each line about a step that is long or large.
    """

    def __init__(self, *, max_memory: int | None, tell: Tell) -> None:
        self.max_memory = max_memory
        self._tell = tell

    @property
    def room_bytes(self) -> int | None:
        """Memory that this process may hold in all; None where nobody says."""
        free = memory_available_bytes()
        known = [] if free is None else [free + memory_used_bytes()]  # what it already holds is part of it
        return min([*known, *([] if self.max_memory is None else [self.max_memory])], default=None)

    def allow(self, needs: Needs, out: Path) -> None:
        """Announce a step that is about to begin.

        Args:
            needs: what the step takes.
            out: what it writes; the disk that this is on must have the room.

        Raises:
            BudgetError: more memory than allowed or free, or more disk than free.
        """
        self.allow_all((needs,), out)

    def allow_all(self, steps: Iterable[Needs], out: Path) -> None:
        """Announce a series of steps before the first begins; the disk must have room for all of their outputs.

        Raises:
            BudgetError: more memory than allowed or free in one of them, or more disk than free in all.
        """
        planned = tuple(steps)
        for needs in planned:
            self._require_memory(needs)
        # What an earlier attempt has written is kept or replaced.
        total, free = sum(needs.disk_bytes for needs in planned), disk_free_bytes(out) + _held_bytes(out)
        if total > free:
            parts = [f"{needs.step}: {in_words(needs.disk)}" for needs in planned if needs.disk_bytes]
            raise BudgetError(
                where=f"{planned[0].step}, before it begins",
                expected=f"{in_bytes(total)} of disk free at {out} ({'; '.join(parts)})",
                found=in_bytes(free),
                fix="free some space, or choose another --out",
            )
        for needs in planned:
            speeds = _speeds_worth_telling(needs, out)
            for line in () if speeds is None else announcement(needs, speeds, out):
                self._tell(line)

    def _require_memory(self, needs: Needs) -> None:
        room = self.room_bytes
        if room is None or needs.memory_bytes <= room:
            return
        whose = "as --max-memory says" if room == self.max_memory else "which is what this machine has free"
        raise BudgetError(
            where=f"{needs.step}, before it begins",
            expected=f"at most {in_bytes(room)} of memory, {whose}",
            found=f"a need of about {in_bytes(needs.memory_bytes)}: {in_words(needs.memory)}",
            fix=needs.advice,
        )


def _held_bytes(out: Path) -> int:
    """What lies at `out`, and beside it under its name while it isn't whole: `.out.partial`, `.plan.json.search`."""
    unfinished = out.parent.glob(f".{glob.escape(out.name)}.*")
    return sum(
        path.stat().st_size for place in (out, *unfinished) for path in (place, *place.rglob("*")) if path.is_file()
    )


def announcement(needs: Needs, speeds: Speeds, out: Path) -> tuple[str, ...]:
    """The lines that say what a step takes and what there is, with the arithmetic."""
    free, disk = memory_available_bytes(), in_bytes(disk_free_bytes(out))
    lines = [
        f"{needs.step} needs about {in_bytes(needs.memory_bytes)} of memory, {in_bytes(needs.disk_bytes)} of disk and "
        f"{in_time(needs.seconds(speeds))}; free: {'unknown' if free is None else in_bytes(free)} and {disk}",
        f"  memory: {in_words(needs.memory)}",
    ]
    if needs.disk:
        lines.append(f"  disk: {in_words(needs.disk)}")
    lines.append(f"  time: {work_in_words(needs.work, speeds)}")
    if speeds.disk_is_assumed:
        read, write = in_bytes(int(speeds.read_bytes)), in_bytes(int(speeds.write_bytes))
        lines.append(f"  the disk at {out} can't be timed: assumed to read {read} and to write {write} per second")
    return tuple(lines)


def _speeds_worth_telling(needs: Needs, out: Path) -> Speeds | None:
    """The measured speeds, where the step is long or large; None for one that isn't worth a line."""
    large = needs.memory_bytes > MUCH_MEMORY_BYTES
    if not large and needs.seconds(ASSUMED_SLOWEST) <= LONG_SECONDS:
        return None
    multiplies = any(work.kind in ("multiply", "traverse") for work in needs.work)
    speeds = measure_speeds(out, multiplies=multiplies, writes=bool(needs.disk))
    return speeds if large or needs.seconds(speeds) > LONG_SECONDS else None
