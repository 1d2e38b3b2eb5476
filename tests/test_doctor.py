from __future__ import annotations

import ctypes
import importlib.util
import json
import re
import sys
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest

from hlap_export.doctor import Diagnosis, doctor
from hlap_export.machine import count_nvidia_gpus


class FakeDriver:
    """libcuda as far as the doctor asks it."""

    def __init__(self, *, status: int = 0, gpus: int = 0, compute_capability: tuple[int, int] = (8, 9)) -> None:
        self.status, self.gpus, self.compute_capability = status, gpus, compute_capability

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        load = ctypes.CDLL
        monkeypatch.setattr(ctypes, "CDLL", lambda name, *_: self if "cuda" in str(name) else load(name))

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        return self.status

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:  # noqa: N802
        device._obj.value = 40 + ordinal
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:  # noqa: N802
        assert device.value == 40
        name.value = b"NVIDIA Fake"[: length - 1]
        return 0

    def cuDeviceGetAttribute(self, number: Any, attribute: int, device: Any) -> int:  # noqa: N802
        assert device.value == 40
        # As cuda.h numbers them: COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR.
        number._obj.value = {75: self.compute_capability[0], 76: self.compute_capability[1]}[attribute]
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
    def absent(name: str) -> None:
        return None

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    engines = {engine.engine: engine.reason for engine in doctor().engines}
    assert "'hlap-export[gpu]'" in engines["onnxruntime-cuda"]
    assert "'hlap-export[trt]'" in engines["tensorrt"]
    assert "'hlap-export[rtx]'" in engines["tensorrt-rtx"]


def test_without_a_driver_tensorrt_rtx_builds_and_says_in_one_sentence_why_it_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hlap_export.engines.trt.library.count_nvidia_gpus", lambda: (0, "no NVIDIA driver"))
    found = next(engine for engine in doctor().engines if engine.engine == "tensorrt-rtx")
    assert (found.can_build, found.can_run) == (True, False)
    assert found.reason == "no NVIDIA driver: use a machine with an NVIDIA GPU and its driver"
    assert found.version == metadata.version("tensorrt-rtx")


def test_without_a_driver_tensorrt_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects take the process down there, at the latest when they are freed."""
    monkeypatch.setattr("hlap_export.engines.trt.library.count_nvidia_gpus", lambda: (0, "no NVIDIA driver"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # would make an import fail with a message of its own
    found = next(engine for engine in doctor().engines if engine.engine == "tensorrt")
    assert (found.can_build, found.can_run) == (False, False)
    assert "no NVIDIA driver" in found.reason


@pytest.mark.parametrize(
    ("compute_capability", "can_run", "reason"),
    [
        ((8, 9), True, r"works"),
        ((12, 0), True, r"works"),
        (
            (9, 0),
            False,
            r"GPU \(NVIDIA Fake\) is SM90, and TensorRT-RTX 1\..* runs on SM75, SM80, .*: use --engine tensorrt ",
        ),
        ((10, 0), False, r"SM100"),
    ],
    ids=str,
)
def test_tensorrt_rtx_runs_on_the_gpus_that_it_builds_for_alone(
    compute_capability: tuple[int, int], can_run: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx")
    FakeDriver(gpus=1, compute_capability=compute_capability).install(monkeypatch)
    found = next(engine for engine in doctor().engines if engine.engine == "tensorrt-rtx")
    assert (found.can_build, found.can_run) == (True, can_run)
    assert re.search(reason, found.reason)


def test_an_engine_without_the_bindings_that_run_it_builds_and_says_what_brings_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    FakeDriver(gpus=1).install(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cuda" else find(name))
    found = next(engine for engine in doctor().engines if engine.engine == "tensorrt-rtx")
    assert (found.can_build, found.can_run) == (True, False)
    assert found.reason == "cuda-bindings isn't installed: pip install 'hlap-export[rtx]'"


@pytest.mark.parametrize(("version", "can_build"), [("10.14.1.48", False), ("10.15.1.29", True), ("11.4.0.106", True)])
def test_a_tensorrt_that_lacks_what_flavour_trt_needs_is_told_by_its_version(
    version: str, can_build: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDriver(gpus=1).install(monkeypatch)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))  # type: ignore[arg-type]
    found = next(engine for engine in doctor().engines if engine.engine == "tensorrt")
    assert found.can_build == can_build
    assert can_build or found.reason == (
        "TensorRT 10.14.1.48 is older than 10.15: pip install 'hlap-export[trt]' --upgrade"
    )


def test_the_diagnosis_survives_json() -> None:
    diagnosis = doctor()
    assert Diagnosis.model_validate(json.loads(diagnosis.model_dump_json())) == diagnosis
    assert diagnosis.machine["memory_bytes"] >= (diagnosis.memory_free_bytes or 0) > 0
