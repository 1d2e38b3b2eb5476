from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest

from hlap_export.machine import disk_free_bytes, memory_available_bytes, memory_used_bytes, return_freed_memory

GIB = 2**30
V1 = {"limit": "memory.limit_in_bytes", "usage": "memory.usage_in_bytes", "cached": "total_inactive_file"}
V2 = {"limit": "memory.max", "usage": "memory.current", "cached": "inactive_file"}


def machine_with(root: Path, *, available_gib: int, groups: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available_gib * 2**20} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def limit_group(folder: Path, names: dict[str, str], *, limit: int | str, usage: int, cached: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names["limit"]).write_text(f"{limit}\n")
    (folder / names["usage"]).write_text(f"{usage}\n")
    (folder / "memory.stat").write_text(f"inactive_file {1 if names is V1 else cached}\n{V1['cached']} {cached}\n")


def test_without_groups_the_machines_own_figure_counts(tmp_path: Path) -> None:
    assert memory_available_bytes(machine_with(tmp_path, available_gib=7, groups="")) == 7 * GIB


def test_a_containers_limit_counts_where_it_is_lower_and_its_idle_file_pages_are_free(tmp_path: Path) -> None:
    root = machine_with(tmp_path, available_gib=20, groups="0::/box\n")
    limit_group(root / "sys/fs/cgroup/box", V2, limit=4 * GIB, usage=3 * GIB, cached=1 * GIB)
    assert memory_available_bytes(root) == 2 * GIB


def test_a_limit_around_the_innermost_group_counts_too(tmp_path: Path) -> None:
    root = machine_with(tmp_path, available_gib=20, groups="0::/pod/box\n")
    limit_group(root / "sys/fs/cgroup/pod", V2, limit=5 * GIB, usage=1 * GIB)
    limit_group(root / "sys/fs/cgroup/pod/box", V2, limit="max", usage=1 * GIB)
    assert memory_available_bytes(root) == 4 * GIB


def test_the_mount_itself_is_the_group_where_the_hosts_path_is_unknown(tmp_path: Path) -> None:
    root = machine_with(tmp_path, available_gib=20, groups="4:memory:/docker/1234\n3:cpu:/\n0::/\n")
    limit_group(root / "sys/fs/cgroup/memory", V1, limit=3 * GIB, usage=2 * GIB, cached=GIB // 2)
    assert memory_available_bytes(root) == 3 * GIB // 2


def test_the_machine_wins_where_the_limit_is_higher(tmp_path: Path) -> None:
    root = machine_with(tmp_path, available_gib=2, groups="4:memory:/\n")
    limit_group(root / "sys/fs/cgroup/memory", V1, limit=2**63 - 4096, usage=GIB)
    assert memory_available_bytes(root) == 2 * GIB


def test_a_system_that_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    assert memory_available_bytes(tmp_path) is None


@pytest.mark.parametrize("below", ["", "not/there/yet"])
def test_disk_room_is_known_before_the_folder_exists(tmp_path: Path, below: str) -> None:
    assert 0 < disk_free_bytes(tmp_path / below) <= disk_free_bytes(tmp_path) + 2**30


def test_memory_held_here_is_counted() -> None:
    before = memory_used_bytes()
    held = b"x" * (64 * 2**20)
    assert memory_used_bytes() - before > 0.9 * len(held)


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries decide for themselves")
def test_freed_memory_goes_back_to_the_system() -> None:
    before = memory_used_bytes()
    # Pieces too small to be mapped each for itself, and some of them stay: free() alone keeps what is between.
    pieces = [ctypes.create_string_buffer(b"x" * 60_000) for _ in range(2000)]
    kept = pieces[::100]
    del pieces
    return_freed_memory()
    assert memory_used_bytes() - before < 20 * 2**20
    assert kept
