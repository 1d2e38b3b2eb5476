"""The examples of gating work as they are: the tests of pytest, and every command and file that the workflow names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.gate.runs import plain_bench, results, text_losses, verify_report

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/gate"


def run_example_tests(folder: Path, *, slower: float) -> subprocess.CompletedProcess[str]:
    """The example's own tests in a fresh pytest, on a run that is so much slower than the accepted one."""
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    (folder / "accepted.json").write_text(results().model_dump_json())
    run = folder / "run"
    run.mkdir()
    (run / "verify.json").write_text(verify_report(*text_losses()).model_dump_json())
    (run / "bench.json").write_text(plain_bench(slower=slower).model_dump_json())
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "test_engine.py"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "PATH": ""}
    )


@pytest.mark.parametrize(("slower", "failures"), [(1.0, 0), (1.1, 6)])
def test_the_pytest_example_has_a_test_for_each_verdict(slower: float, failures: int, tmp_path: Path) -> None:
    done = run_example_tests(tmp_path, slower=slower)
    assert done.returncode == (1 if failures else 0), done.stdout + done.stderr
    assert len(re.findall(r"^FAILED ", done.stdout, re.MULTILINE)) == failures
    assert "PASSED test_engine.py::test_the_engine_may_ship[failed_checks: at most 0]" in done.stdout


def test_the_workflow_is_yaml_and_its_commands_are_ours() -> None:
    workflow: Any = yaml.safe_load((EXAMPLE / "engine_gate.yml").read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    commands = "\n".join(step["run"] for step in steps if "run" in step).replace("\\\n", " ")
    verbs = re.findall(r"hlap-export (\w+)([^|\n]*)", commands)
    assert [verb for verb, _ in verbs] == ["run", "gate"]
    for verb, rest in verbs:
        shown = subprocess.run(
            [sys.executable, "-m", "hlap_export.cli", verb, "--help"],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
            env={"COLUMNS": "200", "PATH": ""},
        ).stdout
        flags = re.findall(r"--[a-z-]+", rest)
        assert flags
        assert all(f"{flag} " in shown for flag in flags)


def test_the_readme_names_every_file_of_the_example() -> None:
    readme = (EXAMPLE / "README.md").read_text()
    files = {path.name for path in EXAMPLE.iterdir() if path.is_file()} - {"README.md"}
    assert all(f"[{name}]({name})" in readme for name in files)


def test_the_rules_of_the_example_cover_correctness_speed_and_size() -> None:
    rules = yaml.safe_load((EXAMPLE / "gate.yaml").read_text())["rules"]
    assert {rule["metric"] for rule in rules} >= {"failed_checks", "perplexity", "*_ratio", "peak_memory_bytes"}
    assert {rule.get("against") for rule in rules} == {None, "dense", "accepted"}
