"""Which engines can build and run on this machine, and why the others can't."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from hlap_export.artifacts import machine_facts, package_versions
from hlap_export.machine import count_nvidia_gpus, disk_free_bytes, memory_available_bytes


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
            _finding("onnxruntime", "onnxruntime", "onnxruntime-gpu"),
            _finding("onnxruntime-cuda", "onnxruntime-gpu"),
            _finding("tensorrt", "tensorrt"),
            _finding("tensorrt-rtx", "tensorrt-rtx"),
        ),
        nvidia_gpus=gpus,
        nvidia_reason=reason,
        machine=machine_facts(),
        memory_free_bytes=memory_available_bytes(),
        disk_free_bytes=disk_free_bytes(Path.cwd()),
        versions=package_versions(),
    )


def _finding(name: str, *distributions: str) -> EngineFinding:
    from hlap_export.engines import backends

    backend = backends()[name]
    no_build = backend.why_unavailable()
    no_run = no_build or backend.why_not_runnable()
    return EngineFinding(
        engine=name,
        version=_installed_version(*distributions),
        can_build=no_build is None,
        can_run=no_run is None,
        reason="works" if no_run is None else f"{no_run.found}: {no_run.fix}",
    )


def _installed_version(*distributions: str) -> str | None:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None
