from __future__ import annotations

import errno
import os
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from hlap_export.budget import budget as budget_module
from hlap_export.budget import probe
from hlap_export.budget.budget import Budget
from hlap_export.budget.needs import Needs, Speeds, Term, Work
from hlap_export.budget.probe import ASSUMED_SLOWEST, measure_speeds
from hlap_export.budget.sizes import parse_size
from hlap_export.errors import BudgetError

GIB = 2**30
SPEEDS = Speeds(read_bytes=GIB, write_bytes=GIB / 2, hash_bytes=GIB, multiplications=1e10, memory_bytes=GIB)
SMALL = Needs(step="prune", memory=(Term(num_bytes=GIB // 8, why="Python"),), advice="take a smaller model")
LARGE = replace(
    SMALL,
    memory=(*SMALL.memory, Term(num_bytes=3 * GIB, why="head 128256 × 4096")),
    disk=(Term(num_bytes=2 * GIB, why="weights"),),
    work=(
        Work(kind="read", amount=4 * GIB, why="read the checkpoint"),
        Work(kind="write", amount=2 * GIB, why="write it"),
        Work(kind="multiply", amount=2e10, why="fold"),
        Work(kind="wait", amount=1.0, why="start"),
    ),
)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 8 GiB of memory and 10 GiB of disk free, as fast as `SPEEDS`."""
    monkeypatch.setattr(budget_module, "memory_available_bytes", lambda: 8 * GIB)
    monkeypatch.setattr(budget_module, "memory_used_bytes", lambda: 0)
    monkeypatch.setattr(budget_module, "disk_free_bytes", lambda out: 10 * GIB)
    monkeypatch.setattr(budget_module, "measure_speeds", lambda out, *, multiplies, writes: SPEEDS)


def told_about(needs: Needs, *, max_memory: int | None = None) -> list[str]:
    lines: list[str] = []
    Budget(max_memory=max_memory, tell=lines.append).allow(needs, Path("out"))
    return lines


@pytest.mark.usefixtures("machine")
def test_a_large_step_is_announced_with_its_arithmetic() -> None:
    headline, memory, disk, time = told_about(LARGE)
    assert headline == ("prune needs about 3.12 GiB of memory, 2.00 GiB of disk and 11 s; free: 8.00 GiB and 10.00 GiB")
    assert memory == "  memory: 128.0 MiB Python + 3.00 GiB head 128256 × 4096"
    assert disk == "  disk: 2.00 GiB weights"
    assert time == "  time: 4.0 s read the checkpoint + 4.0 s write it + 2.0 s fold + 1.0 s start"


@pytest.mark.usefixtures("machine")
def test_a_small_step_is_not_announced_and_not_probed_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def probed(out: Path, *, multiplies: bool, writes: bool) -> Speeds:
        raise AssertionError("a small step was probed for")

    monkeypatch.setattr(budget_module, "measure_speeds", probed)
    assert told_about(SMALL) == []


@pytest.mark.usefixtures("machine")
def test_a_long_step_is_announced_even_if_it_is_small() -> None:
    thirty_seconds = replace(SMALL, work=(Work(kind="multiply", amount=300e9, why="search"),))
    assert "30 s" in told_about(thirty_seconds)[0]
    ten_seconds = replace(SMALL, work=(Work(kind="multiply", amount=100e9, why="search"),))
    # On the slowest machine assumed it would be long; on this one it isn't.
    assert told_about(ten_seconds) == []


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("needs", "max_memory", "limit"),
    [
        (LARGE, 3 * GIB, "3.00 GiB of memory, as --max-memory says"),
        (
            replace(LARGE, memory=(Term(num_bytes=9 * GIB, why="engines"),)),
            None,
            "8.00 GiB of memory, which is what this machine has free",
        ),
        (
            replace(LARGE, memory=(Term(num_bytes=9 * GIB, why="engines"),)),
            100 * GIB,
            "8.00 GiB of memory, which is what this machine has free",
        ),
        (replace(LARGE, disk=(Term(num_bytes=11 * GIB, why="weights"),)), None, "11.00 GiB of disk free at out"),
    ],
)
def test_what_there_is_no_room_for_is_refused_with_the_arithmetic(
    needs: Needs, max_memory: int | None, limit: str
) -> None:
    with pytest.raises(BudgetError, match="prune, before it begins") as refused:
        told_about(needs, max_memory=max_memory)
    assert limit in str(refused.value)
    assert refused.value.exit_code == 2
    assert any(why in str(refused.value) for why in ("head 128256 × 4096", "engines", "weights"))


@pytest.mark.usefixtures("machine")
def test_memory_that_this_process_holds_already_is_not_asked_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    nine = replace(SMALL, memory=(Term(num_bytes=9 * GIB, why="engines"),))
    monkeypatch.setattr(budget_module, "memory_used_bytes", lambda: 2 * GIB)
    Budget(max_memory=None, tell=lambda line: None).allow(nine, Path("out"))


@pytest.mark.usefixtures("machine")
def test_a_run_is_refused_before_it_begins_if_its_outputs_do_not_fit_together() -> None:
    budget = Budget(max_memory=None, tell=lambda line: None)
    budget.allow_all([LARGE] * 5, Path("out"))
    with pytest.raises(BudgetError, match=r"12\.00 GiB of disk free"):
        budget.allow_all([LARGE] * 6, Path("out"))


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("out", "left_behind", "counts"),
    [
        ("out", "out/checkpoint/model.safetensors", True),
        ("out", ".out.partial/model-00001-of-00002.safetensors", True),
        ("plan.json", ".plan.json.search/states/3.bin", True),
        ("o*t", ".out.partial/model.safetensors", False),
        ("out", ".other.partial/model.safetensors", False),
    ],
)
def test_disk_that_an_earlier_attempt_has_written_is_not_asked_for_again(
    tmp_path: Path, out: str, left_behind: str, counts: bool
) -> None:
    path = tmp_path / left_behind
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(2 * GIB)  # of holes
    budget = Budget(max_memory=None, tell=lambda line: None)
    twelve = replace(SMALL, disk=(Term(num_bytes=12 * GIB, why="weights"),))
    with nullcontext() if counts else pytest.raises(BudgetError, match="of disk free"):
        budget.allow(twelve, tmp_path / out)


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 * GIB), ("500MB", 500_000_000), ("1.5 gib", 3 * GIB // 2), ("4096b", 4096)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text, where="--max-memory") == size


@pytest.mark.parametrize("text", ["4", "GiB", "-1GiB", "0GiB", "4 gigs", "", "4GiB!"])
def test_a_size_that_could_mean_anything_is_refused(text: str) -> None:
    with pytest.raises(BudgetError, match="such as 4GiB or 500MB"):
        parse_size(text, where="--max-memory")


def test_the_probe_measures_and_leaves_nothing_behind(tmp_path: Path) -> None:
    speeds = measure_speeds(tmp_path / "not" / "yet", multiplies=True)
    assert min(speeds.read_bytes, speeds.write_bytes, speeds.hash_bytes) > 1e6
    assert speeds.multiplications > 1e8
    assert list(tmp_path.iterdir()) == []


def refuse_to_write(monkeypatch: pytest.MonkeyPatch, error: OSError) -> None:
    """A disk that no file can be made on, and that nothing is known of."""

    def refused(**options: object) -> object:
        raise error

    monkeypatch.setattr(probe, "_known_disks", {})
    monkeypatch.setattr(tempfile, "TemporaryFile", refused)


def test_where_nothing_is_to_be_written_what_is_there_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_write(monkeypatch, OSError(errno.EROFS, "Read-only file system"))
    (tmp_path / "model.onnx.data").write_bytes(bytes(8 * 2**20))
    (tmp_path / "config.json").write_text("{}")
    speeds = measure_speeds(tmp_path, multiplies=False, writes=False)
    assert speeds.read_bytes > 1e6
    assert not speeds.disk_is_assumed


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_disk_that_cannot_be_written_or_read_is_assumed_to_be_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_to_write(monkeypatch, OSError(code, os.strerror(code)))
    for writes in (True, False):  # there is no file to read either
        speeds = measure_speeds(tmp_path, multiplies=False, writes=writes)
        assert speeds.disk_is_assumed
        assert (speeds.read_bytes, speeds.write_bytes) == (ASSUMED_SLOWEST.read_bytes, ASSUMED_SLOWEST.write_bytes)


@pytest.mark.usefixtures("machine")
def test_an_assumed_disk_is_told_and_only_what_writes_may_write_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def assumed(out: Path, *, multiplies: bool, writes: bool) -> Speeds:
        asked.append(writes)
        return replace(SPEEDS, disk_is_assumed=True)

    monkeypatch.setattr(budget_module, "measure_speeds", assumed)
    reading = replace(LARGE, disk=(), work=(Work(kind="read", amount=4 * GIB, why="load"),))
    told = "  the disk at out can't be timed: assumed to read 1.00 GiB and to write 512.0 MiB per second"
    assert told_about(LARGE)[-1] == told_about(reading)[-1] == told
    assert asked == [True, False]
