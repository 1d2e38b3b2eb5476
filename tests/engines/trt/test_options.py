"""What is asked of the compiler reaches it: the builder's own settings are read back, which needs no GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from hlap_export.artifacts import Manifest
from hlap_export.engines import build
from hlap_export.engines.request import Request
from hlap_export.engines.trt import TENSORRT, TENSORRT_RTX, Library, TensorRTBackend, TensorRTOptions, library, rtx
from hlap_export.engines.trt.compiling import _config
from hlap_export.engines.trt.library import open_log
from hlap_export.engines.trt.timing_cache import TimingCache
from hlap_export.machine import NvidiaGpu
from tests.export.exports import TinyExports

trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx isn't installed: pip install '.[rtx]'")

SMALL = TensorRTOptions(capacity=32, max_batch=2, max_prompt=16, max_logits=8)
SOURCE = Manifest(kind="onnx", parameters={"flavour": "trt"}, inputs={}, versions={}, machine={}, facts={}, files={})


def settings(options: TensorRTOptions) -> dict[str, Any]:
    """What a builder's configuration says of itself."""
    log = open_log(TENSORRT_RTX)
    builder = trt.Builder(log.logger)
    config: Any = _config(TENSORRT_RTX, builder, options)
    return {
        "tf32": config.get_flag(trt.BuilderFlag.TF32),
        "strip_weights": config.get_flag(trt.BuilderFlag.STRIP_PLAN),
        "weight_streaming": config.get_flag(trt.BuilderFlag.WEIGHT_STREAMING),
        "version_compatible": config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE),
        "level": config.builder_optimization_level,
        "workspace": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "is_detailed": config.profiling_verbosity == trt.ProfilingVerbosity.DETAILED,
        "gpus": [config.get_compute_capability(index).name for index in range(config.num_compute_capabilities)],
    }


def test_without_options_products_are_exact_and_the_engine_can_be_inspected() -> None:
    found = settings(TensorRTOptions())
    assert found["tf32"] is False  # the library's own default is True: parity needs all 23 bits
    assert found["is_detailed"]
    assert found["level"] == 3
    assert not (found["strip_weights"] or found["weight_streaming"] or found["version_compatible"])


@pytest.mark.parametrize(
    ("changes", "setting", "value"),
    [
        ({"tf32": True}, "tf32", True),
        ({"strip_weights": True}, "strip_weights", True),
        ({"weight_streaming": True}, "weight_streaming", True),
        ({"version_compatible": True}, "version_compatible", True),
        ({"optimisation_level": 0}, "level", 0),
        ({"optimisation_level": 5}, "level", 5),
        ({"workspace_bytes": 64 * 2**20}, "workspace", 64 * 2**20),
        ({"compute_capabilities": ("SM86", "SM89")}, "gpus", ["SM86", "SM89"]),
    ],
    ids=str,
)
def test_an_option_changes_its_setting_and_no_other(changes: dict[str, Any], setting: str, value: object) -> None:
    found, before = settings(TensorRTOptions(**changes)), settings(TensorRTOptions())
    assert found == before | {setting: value}
    assert found != before


@pytest.mark.parametrize("compatibility", ["ampere_plus", "same_compute_capability"])
def test_compatibility_which_tensorrt_rtx_ignores_is_set_for_tensorrt(compatibility: Any) -> None:
    config = Mock()
    _config(TENSORRT_RTX, Mock(create_builder_config=lambda: config), TensorRTOptions(compatibility=compatibility))
    assert config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.__members__[compatibility.upper()]


@pytest.mark.parametrize("changes", [{"weight_streaming": True}, {"optimisation_level": 0}], ids=str)
def test_the_real_compiler_takes_the_option_and_the_manifest_keeps_it(
    changes: dict[str, Any], tiny_exports: TinyExports, tmp_path: Path
) -> None:
    folder = tiny_exports.get("llama", "mixed", "float16", "trt").folder
    built = build(folder, tmp_path / "engine", engine="tensorrt-rtx", options=replace(SMALL, **changes))
    assert changes.items() <= built.parameters.items()
    assert built.facts["phases"]["decode"]["fused_attention_layers"] == [0, 2]


@pytest.mark.parametrize(
    ("compatibility", "changes"),
    [
        ("none", "gpu NVIDIA A10 (SM86) -> NVIDIA RTX A4000 (SM86)"),
        ("same_compute_capability", None),
        ("ampere_plus", None),
    ],
)
def test_tensorrts_plans_are_built_again_for_another_gpu_unless_they_were_built_for_both(
    compatibility: Any, changes: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TensorRTBackend(library=TENSORRT, options=replace(SMALL, compatibility=compatibility))

    def request(gpu: str) -> Request:
        monkeypatch.setattr(rtx, "first_nvidia_gpu", lambda: NvidiaGpu(name=gpu, compute_capability="SM86"))
        return Request.of(backend, SOURCE, "digest")

    first, second = request("NVIDIA A10"), request("NVIDIA RTX A4000")
    earlier = SOURCE.model_copy(
        update={"parameters": first.parameters, "inputs": first.inputs, "versions": first.versions}
    )
    assert second.why_not(earlier) == changes


@pytest.mark.parametrize(("of", "is_kept"), [(TENSORRT, True), (TENSORRT_RTX, False)], ids=["tensorrt", "tensorrt-rtx"])
def test_timings_are_kept_for_the_library_that_times_kernels(
    of: Library, is_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX documents its timing cache as one that does nothing but ask for a GPU."""
    monkeypatch.setattr(library, "count_nvidia_gpus", lambda: (1, "1 NVIDIA GPU"))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.4.0"))  # type: ignore[arg-type]
    assert (TimingCache.of(of).path is not None) == is_kept
