"""Prune while being killed: a script, because a process that forks must not have threads.

    python -m tests.prune.killing DENSE WORK TRIALS

Each trial prunes into an empty place, is killed (SIGKILL) one to three times before a random one of its calls that
touch the disk, and is then left alone. Prints one JSON line for each trial.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from hlap_export.artifacts import package_versions
from hlap_export.checkpoint import read_layout
from hlap_export.checkpoint.loading import check_weights
from hlap_export.prune import prune
from tests.plans import tiny_plan

ON_DISK = {"open", "write", "fsync", "close", "replace", "rename", "unlink", "mkdir", "rmdir", "scandir"}
SEED = 3


def in_a_fork(work: Callable[[], object]) -> None:
    """Run `work` in a child process that may be killed, but mustn't fail."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("pruning failed")


def watch_calls(act_on: Callable[[int], object]) -> None:
    """From now on call `act_on` with 1, 2, 3, ... before each call that touches the disk."""
    calls = 0

    def profile(frame: object, event: str, function: object) -> None:
        nonlocal calls
        if event == "c_call" and getattr(function, "__name__", "") in ON_DISK:
            calls += 1
            act_on(calls)

    sys.setprofile(profile)


def count_calls_of(work: Callable[[], object], report: Path) -> int:
    """How many calls that touch the disk `work` makes."""

    def counted() -> None:
        numbers = [0]
        watch_calls(numbers.append)
        work()
        sys.setprofile(None)
        report.write_text(str(numbers[-1]))

    in_a_fork(counted)
    return int(report.read_text())


def kill_at(work: Callable[[], object], call: int) -> None:
    """Run `work`, killed right before that call if it gets there."""

    def killed() -> None:
        watch_calls(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == call else None)
        work()

    in_a_fork(killed)


def main(dense: Path, folder: Path, trials: int) -> None:
    plan = tiny_plan("mixed", read_layout(dense))
    check_weights(dense)  # imports what pruning needs, once for all forks
    package_versions()
    calls = count_calls_of(lambda: prune(dense, plan, folder / "whole"), folder / "calls")
    dice = random.Random(SEED)
    for trial in range(trials):
        out = folder / f"trial{trial}"
        kills = [dice.randint(1, calls) for _ in range(dice.randint(1, 3))]
        for call in kills:
            if not out.exists():  # a kill can come too late
                kill_at(lambda: prune(dense, plan, out), call)  # noqa: B023 - called at once
        left = {path.stat().st_ino for path in out.with_name(f".{out.name}.partial").glob("*.safetensors")}
        if not out.exists():
            in_a_fork(lambda: prune(dense, plan, out))  # noqa: B023
        reused = sum(path.stat().st_ino in left for path in out.glob("*.safetensors"))
        print(json.dumps({"out": str(out), "killed_at": kills, "of": calls, "reused_shards": reused}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
