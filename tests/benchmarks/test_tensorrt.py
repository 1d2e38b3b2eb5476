"""The benchmark of a GPU, without one: what failed stands in its file beside what didn't."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tensorrt
from hlap_export.errors import ArtefactError

TESTS = """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_elsewhere(): pytest.skip("tensorrt isn't installed")
@pytest.fixture
def broken(): raise ValueError("no engine")
def test_unprepared(broken): pass
"""


@pytest.fixture(scope="module")
def junit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real pytest writes of four tests."""
    folder = tmp_path_factory.mktemp("tests")
    (folder / "test_four.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={folder}", str(folder)]
    subprocess.run([*command, f"--junitxml={folder / 'out.xml'}"], cwd=folder, check=False, capture_output=True)
    return folder / "out.xml"


def only_two_engines(monkeypatch: pytest.MonkeyPatch, failing: str | None = None) -> None:
    def timed(engine: str, plan: Path | None, out: Path) -> dict[str, Any]:
        if engine == failing:
            raise ArtefactError(where="the GPU", expected="room", found="none", fix="-")
        return {"plan": plan.parent.name if plan else None}

    monkeypatch.setattr(tensorrt, "timed", timed)
    monkeypatch.setattr(tensorrt, "why_not", lambda engine: "tensorrt: isn't there" if engine == "tensorrt" else None)


def written(out: Path) -> dict[str, Any]:
    (path,) = out.iterdir()
    return json.loads(path.read_text())


def test_one_file_holds_every_test_and_engine_and_the_exit_code_says_what_failed(
    junit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_two_engines(monkeypatch)
    assert tensorrt.main(["--out", str(tmp_path), "--tests", str(junit)]) == 1
    result = written(tmp_path)
    assert {name.split("::")[1]: found["outcome"] for name, found in result["tests"].items()} == {
        "test_right": "passed",
        "test_wrong": "failure",
        "test_elsewhere": "skipped",
        "test_unprepared": "error",
    }
    reasons = {name.split("::")[1]: found.get("reason", "") for name, found in result["tests"].items()}
    assert "assert 1 == 2" in reasons["test_wrong"]
    assert reasons["test_elsewhere"] == "tensorrt isn't installed"
    assert result["engines"] == {"tensorrt-rtx": {"plan": None}, "onnxruntime-cuda": {"plan": "tensorrt-rtx"}}
    assert result["not_timed"] == {"tensorrt": "tensorrt: isn't there"}


def test_an_engine_that_fails_leaves_the_others_and_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_two_engines(monkeypatch, failing="tensorrt-rtx")
    assert tensorrt.main(["--out", str(tmp_path)]) == 1
    result = written(tmp_path)
    assert result["engines"] == {"onnxruntime-cuda": {"plan": None}}
    assert "expected room, found none" in result["not_timed"]["tensorrt-rtx"]


def test_where_everything_works_or_nothing_can_the_exit_code_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_two_engines(monkeypatch)
    assert tensorrt.main(["--out", str(tmp_path / "all")]) == 0
    monkeypatch.setattr(tensorrt, "why_not", lambda engine: f"{engine}: no NVIDIA driver")
    assert tensorrt.main(["--out", str(tmp_path / "none")]) == 3
    assert not (tmp_path / "none").exists()
