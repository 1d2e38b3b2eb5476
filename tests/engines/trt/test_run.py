"""The whole pipeline with TensorRT-RTX on a machine that can't run what it builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hlap_export.artifacts import read_manifest
from hlap_export.errors import RecipeError
from hlap_export.pipeline import run
from hlap_export.plan.pruning_plan import Keep, KeepHeads, load_plan
from hlap_export.progress import Progress
from hlap_export.recipe import Recipe, effective_recipe, parse_recipe, tensorrt_options
from hlap_export.report.summary import Summary
from tests.tiny_run import TINY_RECIPE, save_tiny_with_tokenizer

NO_GPU = (0, "no NVIDIA driver on this machine")


def recipe(**changes: Any) -> Recipe:
    kept = TINY_RECIPE.model_dump(exclude={"export", "engine", "tensorrt"})
    return Recipe.model_validate(kept | {"engine": "tensorrt-rtx"} | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_with_tokenizer(tmp_path_factory.mktemp("rtx") / "model")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hlap_export.engines.trt.library.count_nvidia_gpus", lambda: NO_GPU)


def test_dense_and_pruned_are_built_and_their_graphs_verified_where_they_run(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run(model, out, recipe=recipe(tensorrt={"capacity": 64}))
    dense, pruned = summary.builds
    assert (summary.engine, summary.flavour, summary.dtype, summary.passed) == ("tensorrt-rtx", "trt", "float16", True)
    assert dense.compiler.startswith("TensorRT-RTX 1.")
    # The compiler counts them: two inputs, keys and values, for each layer to which the plan leaves its attention.
    plan = load_plan(out / "plan.json")
    num_live = sum(isinstance(attention, Keep | KeepHeads) for attention in plan.attention)
    assert (dense.num_kv_bindings, pruned.num_kv_bindings) == (2 * len(plan.attention), 2 * num_live)
    assert num_live == 2
    assert [phase.num_fused_attention for phase in (*dense.phases, *pruned.phases)] == [4, 4, 2, 2]
    assert (dense.capacity, dense.kv_bytes_per_row) == (64, 64 * 4 * 2 * 2 * 16 * 2)
    assert pruned.size_bytes == (out / "engine/pruned/model.engine").stat().st_size
    assert "engines of tensorrt-rtx can't run here (no NVIDIA driver" in (summary.measured_instead or "")
    assert summary.latency == ()
    assert not (out / "bench.json").exists()
    verified = json.loads((out / "verify.json").read_text())
    assert (verified["engine"], verified["provider"]) == ("onnxruntime", "CPUExecutionProvider")
    report = (out / "report.md").read_text()
    for told in (dense.compiler, "Verified in ONNX Runtime", "nothing was timed", "KV cache per row, 64 tokens"):
        assert told in report
        assert told in (out / "report.html").read_text()
    assert Summary.model_validate_json((out / "summary.json").read_text()) == summary


def test_a_resumed_run_builds_again_what_was_asked_differently_and_says_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(model, tmp_path / "run", recipe=recipe(tensorrt={"capacity": 64}))
    run(model, tmp_path / "run", recipe=recipe(tensorrt={"capacity": 32}), resume=True, progress=Progress())
    told = capsys.readouterr().err
    assert "engine/pruned: made again because capacity is now 32, was 64" in told
    assert "onnx/pruned: reused" in told
    assert read_manifest(tmp_path / "run/engine/pruned").parameters["capacity"] == 32


def test_bfloat16_which_no_cpu_computes_is_verified_in_float32(model: Path, tmp_path: Path) -> None:
    summary = run(model, tmp_path / "run", recipe=recipe(export={"dtype": "bfloat16"}))
    assert "the same graphs in float32 were verified" in (summary.measured_instead or "")
    assert read_manifest(tmp_path / "run/engine/pruned").parameters["dtype"] == "bfloat16"
    assert read_manifest(tmp_path / "run/engine/pruned-onnxruntime").parameters["dtype"] == "float32"
    assert summary.passed


def test_the_engine_decides_the_flavour_that_is_left_out() -> None:
    assert parse_recipe("engine: tensorrt-rtx").export.flavour == "trt"
    assert parse_recipe("engine: tensorrt\nexport: {dtype: bfloat16}").export.dtype == "bfloat16"
    assert parse_recipe("engine: onnxruntime").export.flavour == "ort"
    asked = effective_recipe(Recipe(), None, "tensorrt-rtx")
    assert (asked.engine, asked.export.flavour, asked.export.dtype) == ("tensorrt-rtx", "trt", "float16")
    with pytest.raises(RecipeError, match="flavour trt, which tensorrt takes"):
        parse_recipe("engine: tensorrt\nexport: {flavour: ort}")


def test_an_engine_on_the_command_line_contradicts_a_recipes_flavour_in_words() -> None:
    with pytest.raises(RecipeError, match="flavour trt, which tensorrt-rtx takes"):
        effective_recipe(parse_recipe("export: {flavour: ort}"), None, "tensorrt-rtx")


def test_the_command_lines_sizes_come_before_the_recipes() -> None:
    asked = parse_recipe("engine: tensorrt-rtx\ntensorrt: {capacity: 64, max_batch: 2}")
    options = tensorrt_options(asked, "tensorrt-rtx", {"capacity": 128, "max_prompt": None})
    assert options is not None
    assert (options.capacity, options.max_batch) == (128, 2)
    assert tensorrt_options(asked, "onnxruntime", {"capacity": None}) is None
    with pytest.raises(RecipeError, match=r"--capacity: .*found 128 for onnxruntime"):
        tensorrt_options(asked, "onnxruntime", {"capacity": 128})
