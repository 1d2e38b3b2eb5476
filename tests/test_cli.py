from __future__ import annotations

import errno
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import hlap_export
from hlap_export import cli
from hlap_export.cli import main
from hlap_export.cli.app import VERBS
from hlap_export.errors import BackendMissing, CheckFailed, HlapError, RecipeError
from hlap_export.plan import load_plan
from hlap_export.recipe import parse_alphas
from tests.report.sample import sample_summary
from tests.test_architecture import FLAGS
from tests.tiny import save_tiny
from tests.tiny_run import FinishedRun


def exit_code(*arguments: str | Path) -> Any:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return left.value.code


def stub(monkeypatch: pytest.MonkeyPatch, module: str, verb: str, result: object) -> None:
    """Let a verb return `result`, or raise it."""

    def answer(*arguments: object, **options: object) -> object:
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(importlib.import_module(module), verb, answer)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_that_names_its_json_flag(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(verb, "--help") == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_a_function_of_the_package(verb: str) -> None:
    name = VERBS[verb].__name__
    function = getattr(hlap_export, name)
    assert function.__name__ == name
    assert "return" in function.__annotations__


def test_a_verb_stays_a_function_after_its_package_was_imported() -> None:
    plan_package = importlib.import_module("hlap_export.plan")
    assert hlap_export.plan is plan_package.plan


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out == f"hlap-export {hlap_export.__version__}\n"


@pytest.mark.parametrize("arguments", [("plan",), ("build", "x"), ("run", "--out"), ("fly",), ("doctor", "--fast")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


FAILURES = [
    (HlapError(where="x", expected="a", found="b", fix="c"), 2),
    (CheckFailed(where="x", expected="a", found="b", fix="c"), 1),
    (BackendMissing(where="x", expected="a", found="b", fix="c"), 3),
]


@pytest.mark.parametrize(("error", "code"), FAILURES)
def test_an_error_of_ours_is_one_paragraph_on_stderr_with_its_exit_code(
    error: HlapError, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, "hlap_export.doctor", "doctor", error)
    assert exit_code("doctor") == code
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: x: expected a, found b. Fix: c\n")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("odd"), "RuntimeError: odd"),
        (MemoryError(), "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "/there"), "/there: No space left on device"),
    ],
)
def test_an_unexpected_error_is_one_line_without_a_traceback(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, "hlap_export.doctor", "doctor", error)
    assert exit_code("doctor") == 70
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_with_debug_the_error_itself_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, "hlap_export.doctor", "doctor", FAILURES[0][0])
    with pytest.raises(HlapError):
        main(["doctor", "--debug"])


def test_an_interrupt_exits_with_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, "hlap_export.doctor", "doctor", KeyboardInterrupt())
    assert exit_code("doctor") == 130
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_run_prints_the_summary_and_fails_when_a_check_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, "hlap_export.pipeline", "run", sample_summary())
    assert exit_code("run", "--out", tmp_path) == 0
    assert "2 of 12 layers lose their attention" in capsys.readouterr().out
    stub(monkeypatch, "hlap_export.pipeline", "run", sample_summary(logit_error=3e-2))
    assert exit_code("run", "--out", tmp_path) == 1
    out, err = capsys.readouterr()
    assert "not verified" in out
    assert "prefill logits" in err


def test_run_prints_json_for_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(monkeypatch, "hlap_export.pipeline", "run", sample_summary())
    assert exit_code("run", "--out", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["format"] == "hlap-export/summary/2"


def test_plan_and_prune_turn_alphas_on_the_command_line_into_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plan = save_tiny(tmp_path / "model", "llama"), tmp_path / "plan.json"
    assert exit_code("plan", model, "--out", plan, "--method", "fixed", "--alpha", "2=0.3", "--alpha", "3=0") == 0
    assert "layer 2: alpha 0.3   layer 3: alpha 0" in capsys.readouterr().out
    assert load_plan(plan).alphas == {2: 0.3, 3: 0.0}
    assert exit_code("prune", model, "--plan", plan, "--out", tmp_path / "pruned", "--json") == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [layer["attention"] for layer in layers] == ["full", "full", "value_only", "skip"]


def test_plan_says_how_many_parameters_and_how_much_cache_a_config_alone_would_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny(tmp_path / "model", "llama")
    (model / "model.safetensors").unlink()
    plan = ("--method", "fixed", "--alpha", "3=0", "--json")
    assert exit_code("plan", model, "--out", tmp_path / "p.json", *plan) == 0
    facts = json.loads(capsys.readouterr().out)["facts"]
    attention, mlp = 2 * 48 * 96 + 2 * 48 * 32, 3 * 48 * 80
    assert facts["removed_ratio"] == pytest.approx(attention / (4 * (attention + mlp)))
    assert facts["kv_removed_ratio"] == 0.25


def test_verify_and_bench_print_what_they_found(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, recipe = finished.out, tmp_path / "recipe.yaml"
    recipe.write_text("verify: {windows: 2, window_length: 16}\nbench: {prompt_lengths: [4], repeats: 5}")
    pruned, dense = out / "engine/pruned", out / "engine/dense"
    reference = ("--reference", out / "checkpoint", "--baseline", dense, "--recipe", recipe)
    assert exit_code("verify", pruned, *reference) == 0
    printed = capsys.readouterr().out
    assert "cached decode logits" in printed
    assert "evaluation.txt, 2 windows of 16 tokens" in printed
    assert exit_code("bench", pruned, "--baseline", dense, "--context-length", "8", "--recipe", recipe, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["latency"]
    assert [(row["phase"], row["num_tokens"]) for row in rows] == [("prefill", 4), ("decode", 8)]


def test_verify_fails_with_1_when_the_engine_is_of_another_model(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("verify: {windows: 2, window_length: 16}")
    engine = finished.out / "engine/pruned"
    assert exit_code("verify", engine, "--reference", finished.model, "--recipe", recipe) == 1
    assert "✗ failed" in capsys.readouterr().out


def test_windows_that_the_model_has_no_positions_for_are_refused_before_anything_runs(
    finished: FinishedRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """The default of 256 tokens is more than the tiny model's positions."""
    assert exit_code("verify", finished.out / "engine/pruned", "--reference", finished.out / "checkpoint") == 2
    assert "max_position_embeddings" in capsys.readouterr().err


def test_export_and_build_refuse_what_is_not_available(tmp_path: Path, finished: FinishedRun) -> None:
    checkpoint, out = finished.out / "checkpoint", tmp_path / "out"
    assert exit_code("export", checkpoint, "--out", out, "--flavour", "fancy") == 2
    assert exit_code("build", finished.out / "onnx/pruned", "--out", out, "--engine", "tensorrt") == 3
    assert exit_code("build", checkpoint, "--out", out) == 2
    assert not out.exists()


MEMORY_TAKING = {
    "run": "--out {out}",
    "plan": "{model} --out {out}",
    "prune": "{model} --plan {run}/plan.json --out {out}",
    "export": "{run}/checkpoint --out {out}",
    "build": "{run}/onnx/pruned --out {out}",
    "verify": "{run}/engine/pruned --reference {run}/checkpoint",
    "bench": "{run}/engine/pruned --baseline {run}/engine/dense",
    "eval": "{run}/engine/pruned --tasks any",
    "generate": "{run}/engine/pruned --prompt import",
    "bundle": "{run}/engine/pruned --out {out}",
}


def test_every_verb_that_takes_a_memory_limit_is_held_to_it_below() -> None:
    assert {verb for verb, flags in FLAGS.items() if "--max-memory" in flags} == set(MEMORY_TAKING)


@pytest.mark.parametrize("verb", MEMORY_TAKING)
def test_a_step_that_needs_more_memory_than_allowed_does_not_begin(
    verb: str, finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(finished.out.rglob("*"))
    places = {"model": finished.model, "run": finished.out, "out": tmp_path / "out"}
    arguments = [word.format(**places) for word in MEMORY_TAKING[verb].split()]
    assert exit_code(verb, *arguments, "--max-memory", "1MiB") == 2
    out, said = capsys.readouterr()
    assert out == ""
    assert re.search(r": expected at most 1.00 MiB of memory, as --max-memory says, .* raise --max-memory\n$", said)
    assert list(tmp_path.iterdir()) == []
    assert sorted(finished.out.rglob("*")) == before


def test_verify_keeps_no_more_of_its_reference_in_memory_than_it_may(
    finished: FinishedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def answer(*_: object, options: Any, **__: object) -> object:
        asked.append(options)
        raise HlapError(where="x", expected="a", found="b", fix="c")

    monkeypatch.setattr(importlib.import_module("hlap_export.verify"), "verify", answer)
    verb = ("verify", finished.out / "engine/pruned", "--reference", finished.out / "checkpoint")
    assert exit_code(*verb, "--max-memory", "2GiB") == 2
    assert [options.max_memory for options in asked] == [2 * 2**30]


def test_alphas_are_pairs_of_layer_and_value() -> None:
    assert parse_alphas(["8=0.2", "9=1"]) == {8: 0.2, 9: 1.0}
    assert parse_alphas([]) is None


@pytest.mark.parametrize("pairs", [["8"], ["8=x"], ["top=0.2"], ["8=0.2", "8=0.3"], ["=1"], ["8:0.2"]])
def test_what_is_not_a_pair_or_comes_twice_is_refused(pairs: list[str]) -> None:
    with pytest.raises(RecipeError, match="--alpha"):
        parse_alphas(pairs)


def test_in_a_pipe_the_program_prints_neither_colours_nor_library_noise(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama")
    command = [sys.executable, "-m", cli.__name__, "inspect", str(model)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ, TERM="dumb"))
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert "dense checkpoint of family llama" in done.stdout
