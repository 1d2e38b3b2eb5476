"""A prune that is killed goes on where it stopped, and the result is the same, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hlap_export.artifacts import is_intact, read_manifest
from hlap_export.checkpoint import read_layout
from hlap_export.errors import OutputError
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.prune import prune, streaming
from tests.plans import tiny_plan
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent.parent
TRIALS = 15
LONG_AGO = 1_600_000_000


class StoppedError(Exception):
    """What a test interrupts a prune with."""


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    """A model in many shards, old enough for its digests to be remembered."""
    folder = save_tiny(tmp_path / "dense", "qwen2", shard_size="60KB")
    for path in folder.iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def plan_named(name: str, dense: Path) -> PruningPlan:
    return tiny_plan(name, read_layout(dense))


def stop_halfway(dense: Path, plan: PruningPlan, out: Path) -> dict[str, int]:
    """Prune half of the model, then stop; the finished shards by name, with their inodes."""

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        prune(dense, plan, out, on_progress=stop)
    return inodes(out.with_name(f".{out.name}.partial"))


def inodes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("*.safetensors")}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_killed_at_random_points_it_goes_on_and_writes_the_same_bytes(dense: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.prune.killing", str(dense), str(tmp_path), str(TRIALS)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    trials = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(trials) == TRIALS
    expected = content(tmp_path / "whole")
    for trial in trials:
        assert content(Path(trial["out"])) == expected, trial
    assert sum(trial["reused_shards"] > 0 for trial in trials) > TRIALS / 4
    assert not list(tmp_path.glob(".*.partial*"))


def test_finished_shards_are_neither_written_nor_read_again(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = plan_named("mixed", dense), tmp_path / "out"
    finished = stop_halfway(dense, plan, out)
    assert finished
    opened: list[str] = []
    real_open = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *a, **k: opened.append(self.name) or real_open(self, *a, **k))
    # As in a new process, which remembers nothing.
    monkeypatch.setattr("hlap_export.digests._known", {})
    read_headers = len(list(dense.glob("*.safetensors")))
    prune(dense, plan, out)
    assert finished.items() <= inodes(out).items()
    # Each dense shard's header is read once for the check; the shards worked off already aren't opened again.
    reads = [name for name in opened if name.endswith(".safetensors")]
    assert all(reads.count(name) == 1 for name in finished), reads
    assert len(set(reads)) == read_headers
    assert is_intact(out, read_manifest(out))


@pytest.mark.parametrize("other", ["plan", "model"])
def test_another_request_reuses_nothing(dense: Path, tmp_path: Path, other: str) -> None:
    finished = stop_halfway(dense, plan_named("mixed", dense), tmp_path / "out")
    for name in finished:  # of the right size, so that only the request tells that they don't belong here
        path = tmp_path / ".out.partial" / name
        path.write_bytes(bytes(path.stat().st_size))
    if other == "model":
        save_tiny(dense, "qwen2", shard_size="60KB", seed=1)
    plan = plan_named("suffix" if other == "plan" else "mixed", dense)
    prune(dense, plan, tmp_path / "out")
    prune(dense, plan, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_progress_counts_bytes_and_starts_where_it_stopped(dense: Path, tmp_path: Path) -> None:
    plan = plan_named("mixed", dense)
    seen: list[tuple[int, int]] = []
    stop_halfway(dense, plan, tmp_path / "out")
    prune(dense, plan, tmp_path / "out", on_progress=lambda done, total: seen.append((done, total)))
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert seen[-1] == (index["metadata"]["total_size"],) * 2
    assert seen == sorted(seen)


def test_on_a_full_disk_the_finished_shards_stay_and_the_error_says_where(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(streaming, "_write_config", no_space)
        with pytest.raises(OutputError, match=r"disk is full.*goes on from what is finished in .*\.out\.partial"):
            prune(dense, plan_named("suffix", dense), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    finished = inodes(tmp_path / ".out.partial")
    prune(dense, plan_named("suffix", dense), tmp_path / "out")
    assert inodes(tmp_path / "out") == finished
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]
