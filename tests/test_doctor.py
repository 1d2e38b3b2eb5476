from __future__ import annotations

import ctypes
import json
from importlib import metadata
from typing import Any

import pytest

from hlap_export.doctor import Diagnosis, count_nvidia_gpus, doctor


class FakeDriver:
    """libcuda as far as the doctor asks it."""

    def __init__(self, *, status: int = 0, gpus: int = 0) -> None:
        self.status, self.gpus = status, gpus

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0


def test_onnxruntime_is_found_with_its_version() -> None:
    engines = {engine.engine: engine for engine in doctor().engines}
    assert engines["onnxruntime"].can_build
    assert engines["onnxruntime"].can_run
    assert engines["onnxruntime"].version == metadata.version("onnxruntime")


def test_an_engine_that_cannot_be_used_says_why() -> None:
    for engine in doctor().engines:
        assert engine.reason
        assert engine.can_run or len(engine.reason.split()) > 3


@pytest.mark.parametrize(
    ("driver", "gpus", "reason"),
    [
        (FakeDriver(gpus=2), 2, "2 NVIDIA GPUs"),
        (FakeDriver(gpus=0), 0, "shows no GPU"),
        (FakeDriver(status=100), 0, "cuInit returned 100"),
        (OSError("libcuda.so.1: cannot open"), 0, "no NVIDIA driver"),
    ],
)
def test_the_driver_itself_is_asked_for_gpus(
    driver: FakeDriver | OSError, gpus: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> FakeDriver:
        if isinstance(driver, OSError):
            raise driver
        return driver

    monkeypatch.setattr(ctypes, "CDLL", load)
    found, words = count_nvidia_gpus()
    assert found == gpus
    assert reason in words


def test_a_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(distribution: str) -> str:
        raise metadata.PackageNotFoundError(distribution)

    monkeypatch.setattr(metadata, "version", absent)
    engines = {engine.engine: engine.reason for engine in doctor().engines}
    assert "'hlap-export[gpu]'" in engines["onnxruntime-cuda"]
    assert "'hlap-export[trt]'" in engines["tensorrt"]
    assert "'hlap-export[rtx]'" in engines["tensorrt-rtx"]


def test_the_diagnosis_survives_json() -> None:
    diagnosis = doctor()
    assert Diagnosis.model_validate(json.loads(diagnosis.model_dump_json())) == diagnosis
    assert diagnosis.machine["memory_bytes"] >= (diagnosis.memory_free_bytes or 0) > 0
