"""The commands of the polygraphy example, as its README states them, on exports of the tiny models."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hlap_export.engines import backends, build
from hlap_export.engines.trt import TensorRTOptions
from hlap_export.machine import count_nvidia_gpus
from tests.export.exports import TinyExports

pytest.importorskip("polygraphy", reason="polygraphy isn't installed: pip install '.[dev]'")

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples/polygraphy/README.md").read_text()
LOOK, COMPILE, ENGINE, COMPARE = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)

FAULTY = "model.layers.1.mlp.down_proj"


def done(commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the commands in a folder where `examples` lies, until one fails."""
    (folder / "examples").symlink_to(ROOT / "examples")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-e", "-c", commands], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )


@pytest.mark.parametrize("flavour", ["portable", "ort", "trt"])
def test_polygraphy_shows_and_runs_every_flavour(flavour: str, tiny_exports: TinyExports, tmp_path: Path) -> None:
    shutil.copytree(tiny_exports.get("llama", "mixed", flavour=flavour).folder, tmp_path / "onnx")
    result = done(LOOK, tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert re.search(r"past_key_values\.2\.key \[dtype=float32, shape=\('batch', 1, ", result.stdout)
    assert "past_key_values.1.key" not in result.stdout
    assert "model.layers.0.self_attn" in result.stdout
    assert "PASSED | Runtime" in result.stdout


def test_polygraphy_compiles_flavour_trt_by_tensorrt_rtx_without_a_gpu(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx isn't installed: pip install '.[rtx]'")
    shutil.copytree(tiny_exports.get("llama", "partial_heads", "float16", "trt").folder, tmp_path / "onnx")
    result = done(COMPILE, tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "fully supported" in result.stdout
    assert (tmp_path / "model.engine").stat().st_size > 100_000


def built_engine(engine: str, exports: TinyExports, folder: Path) -> None:
    """An export and its engine of the capacity that `inputs.py` fills."""
    shutil.copytree(exports.get("llama", "mixed", "float16", "trt").folder, folder / "onnx")
    build(folder / "onnx", folder / "engine", engine=engine, options=TensorRTOptions(capacity=64))


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_polygraphy_looks_into_an_engine_and_runs_it_as_onnx_runtime_does(
    engine: str, tiny_exports: TinyExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = backends()[engine]
    if problem := backend.why_unavailable() or backend.why_not_runnable():
        pytest.skip(f"{engine}: {problem.found}")
    if engine == "tensorrt-rtx":
        monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    built_engine(engine, tiny_exports, tmp_path)
    result = done(ENGINE, tmp_path)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    assert "past_key_values.2.key" in result.stdout
    assert "past_key_values.1.key" not in result.stdout
    assert result.stdout.count("PASSED | Runtime") == 2


def test_without_a_gpu_polygraphy_gets_as_far_as_the_driver(
    tiny_exports: TinyExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx isn't installed: pip install '.[rtx]'")
    if count_nvidia_gpus()[0]:
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "1")
    built_engine("tensorrt-rtx", tiny_exports, tmp_path)
    result = done(f"set +e\n{ENGINE}", tmp_path)
    assert result.stdout.count("PASSED | Runtime") == 1, result.stdout[-2000:]  # ONNX Runtime's part
    assert (result.stdout + result.stderr).count("Could not deserialize engine") == 2


def test_polygraphy_names_the_layer_where_two_models_part(tiny_exports: TinyExports, tmp_path: Path) -> None:
    for name in ("right", "wrong"):
        shutil.copytree(tiny_exports.get("llama", "mixed").folder, tmp_path / name)
    model = onnx.load(tmp_path / "wrong/model.onnx")
    weights = next(weights for weights in model.graph.initializer if weights.name == f"{FAULTY}.weight")
    weights.CopyFrom(numpy_helper.from_array(np.float32(1.05) * numpy_helper.to_array(weights), weights.name))
    onnx.save(model, tmp_path / "wrong/model.onnx")
    result = done(COMPARE, tmp_path)
    assert result.returncode != 0
    failed = re.findall(r"FAILED \| Output: '([^']+)'", result.stdout)
    assert failed[0].startswith(f"{FAULTY}/"), result.stdout[-3000:]
