"""Which engines can build and run on this machine, and why the others can't."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from hlap_export.artifacts import machine_facts, package_versions
from hlap_export.machine import disk_free_bytes, memory_available_bytes


class _Finding(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineFinding(_Finding):
    """Whether one engine can be used here; `reason` says why not, and what would help."""

    engine: str
    version: str | None
    can_build: bool
    can_run: bool
    reason: str


class Diagnosis(_Finding):
    """All that decides what this machine can do."""

    engines: tuple[EngineFinding, ...]
    nvidia_gpus: int
    nvidia_reason: str
    machine: dict[str, Any]
    memory_free_bytes: int | None
    disk_free_bytes: int
    versions: dict[str, str]

    @property
    def can_do_anything(self) -> bool:
        """Whether at least one engine builds and runs."""
        return any(engine.can_build and engine.can_run for engine in self.engines)


def doctor() -> Diagnosis:
    """Look at the installation and the machine; nothing is changed and no engine is started."""
    gpus, reason = count_nvidia_gpus()
    return Diagnosis(
        engines=(
            _onnxruntime("onnxruntime", "onnxruntime", "onnxruntime-gpu"),
            _onnxruntime("onnxruntime-cuda", "onnxruntime-gpu"),
            *(_tensorrt(name) for name in TENSORRT),
        ),
        nvidia_gpus=gpus,
        nvidia_reason=reason,
        machine=machine_facts(),
        memory_free_bytes=memory_available_bytes(),
        disk_free_bytes=disk_free_bytes(Path.cwd()),
        versions=package_versions(),
    )


def count_nvidia_gpus() -> tuple[int, str]:
    """How many GPUs the NVIDIA driver shows, and in words what it said; asks the driver, not an ML framework."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return 0, "no NVIDIA driver on this machine (libcuda isn't found)"
    status = driver.cuInit(0)
    if status != 0:
        return 0, f"the NVIDIA driver is installed but doesn't start (cuInit returned {status})"
    count = ctypes.c_int(0)
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return 0, "the NVIDIA driver works but shows no GPU"
    return count.value, f"{count.value} NVIDIA GPU{'s' if count.value > 1 else ''}"


def _onnxruntime(name: str, *distributions: str) -> EngineFinding:
    from hlap_export.engines import backends

    problem = backends()[name].why_unavailable()
    return EngineFinding(
        engine=name,
        version=_installed_version(*distributions),
        can_build=problem is None,
        can_run=problem is None,
        reason="works" if problem is None else f"{problem.found}: {problem.fix}",
    )


NOT_YET = "installed, but this version of hlap-export doesn't build for it yet"
# Engine -> the distribution, the module and the extra that bring it. They are looked up, never imported: on a
# machine without a driver the import itself can take the process down.
TENSORRT = {"tensorrt": ("tensorrt", "tensorrt", "trt"), "tensorrt-rtx": ("tensorrt-rtx", "tensorrt_rtx", "rtx")}


def _tensorrt(engine: str) -> EngineFinding:
    distribution, module, extra = TENSORRT[engine]
    version = _installed_version(distribution)
    installed = version is not None and importlib.util.find_spec(module) is not None
    return EngineFinding(
        engine=engine,
        version=version,
        can_build=False,
        can_run=False,
        reason=NOT_YET if installed else f"{distribution} isn't installed: pip install 'hlap-export[{extra}]'",
    )


def _installed_version(*distributions: str) -> str | None:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
