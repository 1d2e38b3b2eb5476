from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from hlap_export.artifacts import is_intact, read_manifest
from hlap_export.engines import backends, build, open_session
from hlap_export.engines import ort as ort_engine
from hlap_export.errors import ArtefactError, BackendMissing, OutputError
from tests.tiny_engines import TinyEngines, altered


def test_an_engine_folder_is_self_contained_and_says_how_it_was_made(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get()
    manifest = read_manifest(engine.folder, kind="engine")
    assert {"model.onnx", "model.onnx.data", "config.json"} <= set(manifest.files)
    assert is_intact(engine.folder, manifest)
    assert manifest.parameters == {
        "engine": "onnxruntime",
        "flavour": "portable",
        "dtype": "float32",
        "provider": "CPUExecutionProvider",
        "optimization_level": "extended",
    }
    assert manifest.inputs == {"onnx": read_manifest(engine.export).digest}
    # The "mixed" plan: layer 0 keeps 2 KV groups, layer 2 keeps 1, layers 1 and 3 keep no cache.
    assert manifest.facts["kv_layers"] == [
        {"index": 0, "num_kv_heads": 2, "head_dim": 16},
        {"index": 2, "num_kv_heads": 1, "head_dim": 16},
    ]
    assert manifest.facts["kv_bytes_per_token"] == 2 * (2 + 1) * 16 * 4
    assert manifest.facts["build_seconds"] >= 0


def test_operator_counts_are_those_of_the_graphs_before_and_after(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get()
    facts = read_manifest(engine.folder).facts
    for folder, recorded in ((engine.export, "op_counts_before"), (engine.folder, "op_counts")):
        nodes = onnx.load(folder / "model.onnx", load_external_data=False).graph.node
        assert sum(facts[recorded].values()) == len(nodes)
    assert facts["op_counts"]["SimplifiedLayerNormalization"] > 0
    assert "SimplifiedLayerNormalization" not in facts["op_counts_before"]


def test_weight_bytes_are_not_doubled_by_folding(tiny_engines: TinyEngines) -> None:
    facts = read_manifest(tiny_engines.get().folder).facts
    assert facts["weight_bytes"] <= 1.01 * facts["weight_bytes_before"]


def test_the_same_export_builds_to_the_same_bytes_elsewhere(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    engine = tiny_engines.get()
    again = build(engine.export, tmp_path / "a" / "longer" / "place")
    first = read_manifest(engine.folder)
    assert again.files == first.files
    assert (again.parameters, again.inputs) == (first.parameters, first.inputs)
    graph = (tmp_path / "a" / "longer" / "place" / "model.onnx").read_bytes()
    assert str(tmp_path).encode() not in graph
    assert str(engine.export).encode() not in graph


def test_an_unknown_engine_names_those_that_exist(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    with pytest.raises(BackendMissing, match=r"'openvino'.*onnxruntime") as error:
        build(tiny_engines.get().export, tmp_path / "out", engine="openvino")
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_a_missing_onnxruntime_says_how_to_install_it(
    tiny_engines: TinyEngines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, import_module = tiny_engines.get(), importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name == "onnxruntime":
            raise ModuleNotFoundError("No module named 'onnxruntime'")
        return import_module(name, *rest)

    monkeypatch.setattr(ort_engine.importlib, "import_module", missing)
    with pytest.raises(BackendMissing, match=r"pip install 'hlap-export\[cpu\]'"):
        build(engine.export, tmp_path / "out")
    with pytest.raises(BackendMissing, match="engines that work here: tensorrt-rtx"):
        open_session(engine.folder)


def test_an_export_that_was_changed_since_is_refused(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    changed = altered(tiny_engines.get().export, tmp_path / "export", lambda folder: None)
    with (changed / "model.onnx.data").open("r+b") as data:
        data.write(b"\xff")
    with pytest.raises(ArtefactError, match="different bytes"):
        build(changed, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_weights_are_an_error_and_leave_nothing_behind(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    def truncate(folder: Path) -> None:
        data = folder / "model.onnx.data"
        data.write_bytes(data.read_bytes()[:100])

    broken = altered(tiny_engines.get().export, tmp_path / "export", truncate)
    with pytest.raises(ArtefactError, match=r"model\.onnx: expected a graph that ONNX Runtime"):
        build(broken, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_bfloat16_which_the_cpu_provider_lacks_is_refused_with_what_to_do(
    tiny_engines: TinyEngines,
) -> None:
    with pytest.raises(
        ArtefactError, match=r"implements \(float32, float16\), found .*Fix: export with --dtype float32"
    ):
        tiny_engines.get("llama", "dense", "bfloat16")
    assert not (tiny_engines.root / "engine-llama-dense-bfloat16").exists()


def test_a_disk_too_full_for_the_engine_is_said_beforehand(
    tiny_engines: TinyEngines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engines.get()
    weights = (engine.export / "model.onnx.data").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=weights))
    with pytest.raises(OutputError, match="the disk is full"):
        build(engine.export, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_engine_holds_no_operator_of_one_cpus_blocked_layout(tiny_engines: TinyEngines) -> None:
    nodes = onnx.load(tiny_engines.get().folder / "model.onnx", load_external_data=False).graph.node
    assert {node.domain for node in nodes} <= {"", "com.microsoft"}


def test_a_folder_that_is_no_engine_is_refused(tiny_engines: TinyEngines) -> None:
    with pytest.raises(ArtefactError, match="kind 'engine', found kind 'onnx'"):
        open_session(tiny_engines.get().export)


def test_cuda_without_a_gpu_build_of_the_runtime_is_refused_with_what_to_install(
    tiny_engines: TinyEngines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendMissing, match=r"has CPUExecutionProvider and no CUDA.*hlap-export\[gpu\]"):
        build(tiny_engines.get().export, tmp_path / "out", engine="onnxruntime-cuda")


def test_cuda_without_a_gpu_is_refused_with_what_the_runtime_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(*_: object) -> None:
        raise RuntimeError("no CUDA-capable device is detected")

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("onnxruntime.OrtValue.ortvalue_from_shape_and_type", no_device)
    problem = backends()["onnxruntime-cuda"].why_unavailable()
    assert problem is not None
    assert "no CUDA-capable device" in problem.found


def test_every_backend_answers_whether_it_can_run() -> None:
    assert backends()["onnxruntime"].why_unavailable() is None
    assert all(name == backend.name for name, backend in backends().items())
