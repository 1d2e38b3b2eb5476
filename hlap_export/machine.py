"""What this machine has: memory and disk left for a new process, and GPUs."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """The files of one version of Linux control groups: where memory is accounted, its limit and its use."""

    mount: str
    limit: str
    usage: str
    reclaimable: str


_V2 = _Group(mount="sys/fs/cgroup", limit="memory.max", usage="memory.current", reclaimable="inactive_file")
_V1 = _Group(
    mount="sys/fs/cgroup/memory",
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    reclaimable="total_inactive_file",
)


def memory_available_bytes(root: Path = ROOT) -> int | None:
    """Memory that a new process can have without swapping; None where the system doesn't say.

    A container's limit counts as well as the machine's: /proc/meminfo shows only the latter.

    Args:
        root: where /proc and /sys lie.
    """
    meminfo = root / "proc/meminfo"
    if not meminfo.is_file():
        return None
    machine = [int(line.split()[1]) * 1024 for line in _lines(meminfo) if line.startswith("MemAvailable:")]
    return min([*machine, *_left_in_groups(root)], default=None)


def memory_used_bytes(root: Path = ROOT) -> int:
    """Memory that this process holds; 0 where the system doesn't say."""
    status = [line.split() for line in _lines(root / "proc/self/status") if line.startswith("VmRSS:")]
    return int(status[0][1]) * 1024 if status else 0


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library would keep it for later (glibc)."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def disk_free_bytes(path: Path) -> int:
    """Room on the disk that `path` is on, or will be on."""
    exists = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(exists).free


@dataclass(frozen=True, kw_only=True, slots=True)
class NvidiaGpu:
    """A GPU as its driver names it, and what code it runs: "SM90"."""

    name: str
    compute_capability: str


def first_nvidia_gpu() -> NvidiaGpu | None:
    """The GPU that CUDA computes on where nobody chooses another; None without one."""
    if not count_nvidia_gpus()[0]:
        return None
    driver, device, name = _nvidia_driver(), ctypes.c_int(0), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), 0)
    driver.cuDeviceGetName(name, len(name), device)
    version: list[int] = []
    for attribute in _COMPUTE_CAPABILITY:
        number = ctypes.c_int(0)
        driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        version.append(number.value)
    return NvidiaGpu(name=name.value.decode(), compute_capability="SM{}{}".format(*version))


_COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR."""


def _nvidia_driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")


def count_nvidia_gpus() -> tuple[int, str]:
    """How many GPUs the NVIDIA driver shows, and in words what it said; asks the driver, not an ML framework."""
    try:
        driver = _nvidia_driver()
    except OSError:
        return 0, "no NVIDIA driver on this machine (libcuda isn't found)"
    status = driver.cuInit(0)
    if status != 0:
        return 0, f"the NVIDIA driver is installed but doesn't start (cuInit returned {status})"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return 0, "the NVIDIA driver works but shows no GPU"
    return count.value, f"{count.value} NVIDIA GPU{'s' if count.value > 1 else ''}"


def _left_in_groups(root: Path) -> list[int]:
    """What each control group that this process is in, and each one around it, still allows."""
    left: list[int] = []
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        group = _V2 if not controllers else _V1 if "memory" in controllers.split(",") else None
        if group is None:
            continue
        mount = root / group.mount
        # Inside a container the path may be the host's; its own group is then the mount itself.
        innermost = mount / path.lstrip("/")
        for folder in (innermost, *innermost.parents):
            if folder.is_relative_to(mount) and (room := _left(folder, group)) is not None:
                left.append(room)
    return left


def _left(folder: Path, group: _Group) -> int | None:
    limit, usage = folder / group.limit, folder / group.usage
    if not limit.is_file() or not usage.is_file() or limit.read_text().strip() == "max":
        return None
    # File pages that nobody uses count as used, but the kernel gives them up first.
    cached = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == group.reclaimable]
    return max(0, int(limit.read_text()) - int(usage.read_text()) + sum(cached))


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
