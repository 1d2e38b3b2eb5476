from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open

from hlap_export import reference_model
from hlap_export.artifacts import file_records, folder_digest, read_manifest
from hlap_export.checkpoint import read_layout
from hlap_export.errors import BackendMissing, CheckpointError, OutputError, PlanError, TextError
from hlap_export.inspection import inspect
from hlap_export.pipeline import run
from hlap_export.plan import load_plan
from hlap_export.plan.side_file import side_file_of
from hlap_export.progress import Progress
from hlap_export.recipe import PlanSection, Recipe, VerifySection, dump_recipe, load_recipe
from hlap_export.report.summary import Summary
from tests.plans import save_tiny_fitted, tiny_plan
from tests.tiny import save_tiny
from tests.tiny_run import TINY_RECIPE, FinishedRun

REPRODUCIBLE = ("checkpoint", "onnx/dense", "onnx/pruned")


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> FinishedRun:
    """A finished run that a test may damage."""
    return replace(finished, out=shutil.copytree(finished.out, tmp_path / "copy"))


def resumed(finished: FinishedRun, recipe: Recipe = TINY_RECIPE) -> str:
    """Run once more in the same folder, and return what was said."""
    said = StringIO()
    run(finished.model, finished.out, recipe=recipe, resume=True, progress=Progress(Console(file=said, width=200)))
    return said.getvalue()


def made_again(said: str) -> set[str]:
    return {line.split(" ...")[0].strip() for line in said.splitlines() if line.endswith(" ...")}


def num_parameters(checkpoint: Path) -> int:
    total = 0
    for path in checkpoint.glob("*.safetensors"):
        with safe_open(path, "np") as tensors:
            total += sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118
    return total


def test_every_output_is_named_by_its_digest_and_leads_back_to_the_model_and_the_texts(finished: FinishedRun) -> None:
    origins = {origin.name: origin for origin in finished.summary.origins}
    assert set(origins) == {"plan.json", *REPRODUCIBLE, "engine/dense", "engine/pruned", "verify.json", "bench.json"}
    for name, origin in origins.items():
        path = finished.out / name
        assert origin.digest == (folder_digest(path) if path.is_dir() else sha256(path.read_bytes()).hexdigest())
    made_here = {origin.digest for origin in origins.values()}
    from_outside = {digest for origin in origins.values() for digest in origin.made_from.values()} - made_here
    texts = (reference_model.calibration_text(), reference_model.evaluation_text())
    assert from_outside == {folder_digest(finished.model), *(sha256(text.read_bytes()).hexdigest() for text in texts)}
    assert origins["plan.json"].digest in origins["checkpoint"].made_from.values()


def test_a_verified_engine_is_bundled_for_the_stack_that_is_asked_for(
    copied: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_genai", None)  # where it is installed, it tries the tiny tokenizer
    said = resumed(copied, TINY_RECIPE.model_copy(update={"bundle": "ort-genai"}))
    assert made_again(said) == {"bundle"}
    facts = read_manifest(copied.out / "bundle", kind="bundle").inputs
    assert facts == {"engine": folder_digest(copied.out / "engine/pruned")}
    assert (copied.out / "bundle" / "genai_config.json").is_file()


def test_a_run_leaves_the_documented_files(finished: FinishedRun) -> None:
    for name in ("recipe.yaml", "plan.json", "verify.json", "bench.json", "summary.json", "report.md", "report.html"):
        assert (finished.out / name).stat().st_size > 0
    for name in (*REPRODUCIBLE, "engine/dense", "engine/pruned"):
        assert (finished.out / name / "manifest.json").is_file()
        assert (finished.out / name / "tokenizer.json").is_file() or name == "checkpoint"


def test_the_summary_agrees_with_what_the_stages_wrote(finished: FinishedRun) -> None:
    summary, out = finished.summary, finished.out
    assert Summary.model_validate_json((out / "summary.json").read_text()) == summary
    plan = load_plan(out / "plan.json")
    assert {row.layer: row.alpha for row in summary.pruned_layers} == plan.alphas
    sizes = {size.name: size for size in summary.sizes}
    assert sizes["parameters"].dense == num_parameters(finished.model)
    assert sizes["parameters"].pruned == num_parameters(out / "checkpoint")
    # Two of four equal layers keep a cache: 2 KV heads of 16, keys and values, four bytes each.
    assert sizes["KV cache per token"].dense == 4 * 2 * 2 * 16 * 4
    assert sizes["KV cache per token"].pruned == 2 * 2 * 2 * 16 * 4
    verified = json.loads((out / "verify.json").read_text())
    held_out = next(row for row in summary.perplexities if row.measured_on == "held-out")
    assert held_out.pruned == verified["perplexity"]["candidate"]["perplexity"]
    assert held_out.dense == verified["perplexity"]["baseline"]["perplexity"]
    assert summary.passed


def test_the_saved_recipe_repeats_the_run(finished: FinishedRun) -> None:
    saved = load_recipe(finished.out / "recipe.yaml")
    assert saved == TINY_RECIPE.model_copy(update={"model": str(finished.model)})


def test_a_resumed_run_makes_nothing_again(copied: FinishedRun) -> None:
    assert made_again(resumed(copied)) == set()


def test_a_changed_setting_makes_only_its_stage_again(copied: FinishedRun) -> None:
    changed = TINY_RECIPE.model_copy(update={"verify": VerifySection(windows=2, window_length=32)})
    said = resumed(copied, changed)
    assert made_again(said) == {"verify"}
    assert "windows is now 2, was 3" in said
    assert made_again(resumed(copied)) == {"verify"}


def test_a_measured_plan_is_made_again_for_other_timings_and_a_counted_one_is_not(copied: FinishedRun) -> None:
    counted = TINY_RECIPE.model_copy(update={"bench": TINY_RECIPE.bench.model_copy(update={"context_lengths": (9,)})})
    assert made_again(resumed(copied, counted)) == {"bench"}
    measure = {"plan": TINY_RECIPE.plan.model_copy(update={"measure": True})}
    assert "plan" in made_again(resumed(copied, TINY_RECIPE.model_copy(update=measure)))
    assert made_again(resumed(copied, counted.model_copy(update=measure))) == {"plan", "bench"}


def test_damaged_files_are_made_again_byte_for_byte(copied: FinishedRun) -> None:
    before = {name: file_records(copied.out / name) for name in REPRODUCIBLE}
    weights = copied.out / "checkpoint/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\1\2\3\4")
    (copied.out / "onnx/pruned/model.onnx").unlink()
    assert made_again(resumed(copied)) == {"checkpoint", "onnx/pruned"}
    assert {name: file_records(copied.out / name) for name in REPRODUCIBLE} == before


def test_a_plan_with_fewer_heads_and_a_layer_set_that_is_no_suffix_runs_through(
    finished: FinishedRun, tmp_path: Path
) -> None:
    plan = json.loads((finished.out / "plan.json").read_text()) | {"method": "by hand", "search": None}
    plan["attention"] = [
        {"kind": "keep"},
        {"kind": "value_only", "alpha": 0.3},
        {"kind": "keep_heads", "query_heads": [3, 5]},
        {"kind": "skip"},
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    recipe = TINY_RECIPE.model_copy(update={"plan": PlanSection(file=tmp_path / "plan.json")})
    summary = run(finished.model, tmp_path / "out", recipe=recipe)
    assert summary.passed
    assert [(row.attention, row.num_heads, row.num_kv_heads) for row in summary.layers] == [
        ("full", 6, 2),
        ("value_only", 6, 2),
        ("full", 2, 1),
        ("skip", 0, 0),
    ]
    assert inspect(tmp_path / "out/engine/pruned").facts["kv_bytes_per_token"] == (2 + 1) * 2 * 16 * 4


def test_a_fitted_plan_runs_through_and_a_resumed_run_brings_lost_weights_back(
    finished: FinishedRun, tmp_path: Path
) -> None:
    layout, path = read_layout(finished.model), tmp_path / "by hand.json"
    plan = save_tiny_fitted(tiny_plan("linear", layout), layout, side_file_of(path))
    plan.save(path)
    recipe = TINY_RECIPE.model_copy(update={"plan": PlanSection(file=path)})
    copied = replace(finished, out=tmp_path / "out", summary=run(finished.model, tmp_path / "out", recipe=recipe))
    assert copied.summary.passed
    assert [(row.attention, row.mlp) for row in copied.summary.layers] == [
        ("full", "keep"),
        *[("linear", "keep")] * 2,
        ("linear", "skip"),
    ]
    weights = copied.out / "plan.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    said = resumed(copied, recipe)
    assert "plan.json: made again because its fitted weights are gone" in said
    assert made_again(said) == {"plan"}
    assert weights.read_bytes() == before


def test_a_run_that_fits_its_plan_passes_and_brings_lost_weights_back(finished: FinishedRun, tmp_path: Path) -> None:
    asked = PlanSection(method="choose-fit", choose_by="loss", num_layers=2, windows=6, window_length=32, refit="both")
    recipe, out = TINY_RECIPE.model_copy(update={"plan": asked}), tmp_path / "out"
    fitted = replace(finished, out=out, summary=run(finished.model, out, recipe=recipe))
    assert fitted.summary.passed
    assert [row.attention for row in fitted.summary.layers].count("linear") == 2
    assert [curve.method for curve in fitted.summary.removals] == ["choose-fit", "harp"]
    assert made_again(resumed(fitted, recipe)) == set()
    before = (out / "plan.safetensors").read_bytes()
    (out / "plan.safetensors").unlink()
    assert made_again(resumed(fitted, recipe)) == {"plan"}
    assert (out / "plan.safetensors").read_bytes() == before


def test_a_run_killed_in_the_middle_resumes_to_the_same_bytes(finished: FinishedRun, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(dump_recipe(TINY_RECIPE))
    command = [sys.executable, "-m", "hlap_export.cli", "run", str(finished.model), "--out", str(out)]
    process = subprocess.Popen([*command, "--recipe", str(recipe)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    # An unfinished export lies in a hidden folder beside its place, or the record of the one before has appeared.
    while not (out / ".stages/onnx-dense.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "onnx/pruned").exists()
    kept = {name: folder_digest(out / name) for name in ("checkpoint", "onnx/dense")}

    said = StringIO()
    progress = Progress(Console(file=said, width=200))
    run(finished.model, out, recipe=recipe, resume=True, progress=progress)
    assert {"plan", "checkpoint", "onnx/dense"}.isdisjoint(made_again(said.getvalue()))
    assert {name: folder_digest(out / name) for name in kept} == kept
    for name in REPRODUCIBLE:
        assert file_records(out / name) == file_records(finished.out / name)


SHORT = VerifySection(windows=3, window_length=32)


@pytest.mark.parametrize(
    ("recipe", "error"),
    [
        (Recipe(verify=SHORT, plan=PlanSection(num_layers=4, windows=3, window_length=32)), PlanError),
        (Recipe(verify=SHORT, plan=PlanSection(method="fixed", alphas={9: 0.5})), PlanError),
        (Recipe(verify=SHORT, plan=PlanSection(method="fixed", alphas={3: -0.1})), PlanError),
        (Recipe(verify=SHORT, plan=PlanSection(text=Path("/nowhere.txt"))), TextError),
        (Recipe(verify=VerifySection(windows=10_000, window_length=32)), TextError),
        (Recipe(verify=VerifySection(window_length=129)), TextError),  # the tiny model has 128 positions
        (Recipe(engine="tensorrt"), BackendMissing),
    ],
)
def test_bad_requests_end_before_any_artefact_is_written(
    finished: FinishedRun, tmp_path: Path, recipe: Recipe, error: type[Exception]
) -> None:
    with pytest.raises(error):
        run(finished.model, tmp_path / "out", recipe=recipe)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        run(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_says_so(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama")
    with pytest.raises(CheckpointError, match="tokenizer"):
        run(model, tmp_path / "out", recipe=TINY_RECIPE)


def test_a_folder_with_other_files_is_refused(finished: FinishedRun, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError):
        run(finished.model, tmp_path, recipe=TINY_RECIPE)
