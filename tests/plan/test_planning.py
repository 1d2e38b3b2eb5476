"""A plan that is killed goes on where it stopped, from the command line and in a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hlap_export import pipeline, reference_model, run_stages
from hlap_export.errors import PlanError
from hlap_export.plan import CalibrationOptions, PruningPlan, load_plan, plan
from hlap_export.plan.journal import JOURNAL

RECIPE = "plan: {windows: 24, window_length: 64, num_layers: 2}\n"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    (folder / "recipe.yaml").write_text(RECIPE)
    command = [sys.executable, "-m", "hlap_export.cli", *arguments, "--recipe", str(folder / "recipe.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def kill_when(journal: Path, lines: int, process: subprocess.Popen[str]) -> None:
    """SIGKILL once so many results are in the journal."""
    deadline = time.monotonic() + 120
    while not journal.is_file() or journal.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_plan_command_goes_on_and_leaves_only_the_plan(tmp_path: Path) -> None:
    model = str(reference_model.path())
    undisturbed = start(tmp_path, "plan", model, "--out", str(tmp_path / "undisturbed.json"))
    assert undisturbed.wait() == 0
    arguments = ("plan", model, "--out", str(tmp_path / "plan.json"))
    journal = tmp_path / ".plan.json.search" / JOURNAL
    kill_when(journal, 3, start(tmp_path, *arguments))
    assert not (tmp_path / "plan.json").exists()
    assert start(tmp_path, *arguments).wait() == 0
    assert load_plan(tmp_path / "plan.json") == load_plan(tmp_path / "undisturbed.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "recipe.yaml", "undisturbed.json"]


def test_a_run_killed_while_it_plans_resumes_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = start(tmp_path, "run", str(reference_model.path()), "--out", str(tmp_path / "run"))
    work = tmp_path / "run" / ".stages" / "plan.unfinished"
    kill_when(work / JOURNAL, 3, process)
    finished = (work / JOURNAL).read_bytes()

    def resumed(*arguments: Any, calibration: CalibrationOptions, **options: Any) -> PruningPlan:
        assert calibration.work == work
        made = plan(*arguments, calibration=calibration, **options)
        assert (work / JOURNAL).read_bytes().startswith(finished)
        return made

    def stop(*_: object, **__: object) -> None:
        assert not work.exists()
        raise PlanError(where="prune", expected="no more", found="than the plan", fix="in this test")

    monkeypatch.setattr(run_stages, "plan", resumed)
    monkeypatch.setattr(run_stages, "prune", stop)
    with pytest.raises(PlanError, match="no more"):
        pipeline.run(reference_model.path(), tmp_path / "run", recipe=tmp_path / "recipe.yaml", resume=True)
    assert (tmp_path / "run" / "plan.json").is_file()
