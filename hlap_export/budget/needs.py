"""What one step needs: memory, disk and time, each a sum whose terms say where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hlap_export.report.wording import in_bytes

Kind = Literal["read", "write", "hash", "multiply", "traverse", "wait"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """So many bytes, and why."""

    num_bytes: float
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Something that takes time.

    Attributes:
        kind: what decides how long it takes.
        amount: bytes to read, write or hash; multiplications, where there are many for each weight; bytes of weights
            to traverse in memory, where there is one (decoding); or seconds to wait.
        why: in words.
    """

    kind: Kind
    amount: float
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Speeds:
    """How fast a machine does each kind of work, per second.

    Attributes:
        disk_is_assumed: whether the disk couldn't be timed, and its speeds are a guess.
    """

    read_bytes: float
    write_bytes: float
    hash_bytes: float
    multiplications: float
    memory_bytes: float
    disk_is_assumed: bool = False

    def seconds(self, work: Work) -> float:
        """How long a piece of work takes."""
        match work.kind:
            case "read":
                return work.amount / self.read_bytes
            case "write":
                return work.amount / self.write_bytes
            case "hash":
                return work.amount / self.hash_bytes
            case "multiply":
                return work.amount / self.multiplications
            case "traverse":
                return work.amount / self.memory_bytes
            case "wait":
                return work.amount


@dataclass(frozen=True, kw_only=True, slots=True)
class Needs:
    """The needs of one step.

    Attributes:
        memory: what is held at the peak.
        disk: what is written and stays.
        work: what takes time; one after the other.
        advice: what to do where it is too much memory.
    """

    step: str
    memory: tuple[Term, ...]
    advice: str
    disk: tuple[Term, ...] = ()
    work: tuple[Work, ...] = ()

    @property
    def memory_bytes(self) -> int:
        return int(sum(term.num_bytes for term in self.memory))

    @property
    def disk_bytes(self) -> int:
        return int(sum(term.num_bytes for term in self.disk))

    def seconds(self, speeds: Speeds) -> float:
        """How long the step takes on a machine of these speeds."""
        return sum(speeds.seconds(work) for work in self.work)


def in_words(terms: Iterable[Term]) -> str:
    """The sum: "0.35 GiB Python and torch + 0.13 GiB one o_proj"; terms too small to show are left out."""
    shown = [term for term in terms if term.num_bytes >= 2**20]
    return " + ".join(f"{in_bytes(term.num_bytes)} {term.why}" for term in shown) or "next to nothing"


def work_in_words(work: Iterable[Work], speeds: Speeds) -> str:
    """The sum of times: "21 s read 15 GiB + 4 s trace"; what takes less than a tenth of a second is left out."""
    shown = [(speeds.seconds(piece), piece.why) for piece in work]
    return " + ".join(f"{in_time(seconds)} {why}" for seconds, why in shown if seconds >= 0.1) or "no time"


def in_time(seconds: float) -> str:
    """A duration that is an estimate: "8 s", "3.5 min", "2.1 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
