from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from hlap_export import artifacts, stages
from hlap_export.artifacts import folder_digest, write_manifest, written_whole
from hlap_export.errors import OutputError
from hlap_export.progress import Progress, Step
from hlap_export.stages import StageRunner


class Number(BaseModel):
    value: int


class Run:
    """Two stages in a folder: `base` makes a folder from a source, `sum.json` a number from that."""

    def __init__(self, root: Path) -> None:
        self.out, self.source = root / "out", root / "source.txt"
        self.source.write_text("3")
        self.made: list[str] = []
        self.said = StringIO()

    def __call__(self, *, resume: bool = True, factor: int = 2) -> Number:
        self.made.clear()
        self.said = StringIO()
        progress = Progress(Console(file=self.said, width=200))
        runner = StageRunner(self.out, resume=resume, progress=progress)
        base = runner.folder(
            "deep/base", make=self._make_base, inputs={"source": self.source}, parameters={"factor": factor}
        )
        return runner.document(
            "sum.json", Number, make=lambda step: self._make_sum(base), inputs={"base": base}, parameters={}
        )

    def _make_base(self, out: Path, step: Step) -> None:
        self.made.append("base")
        with written_whole(out) as folder:
            (folder / "number.txt").write_text(self.source.read_text().strip())
            write_manifest(folder, kind="base", parameters={}, inputs={})

    def _make_sum(self, base: Path) -> Number:
        self.made.append("sum")
        return Number(value=int((base / "number.txt").read_text()) + 1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_second_run_reuses_everything_and_returns_the_same(run: Run) -> None:
    first = run(resume=False)
    assert run.made == ["base", "sum"]
    assert run() == first == Number(value=4)
    assert run.made == []
    assert "deep/base: reused" in run.said.getvalue()


def test_another_parameter_makes_the_stage_again_and_says_which(run: Run) -> None:
    run()
    run(factor=5)
    assert "factor is now 5, was 2" in run.said.getvalue()
    # What came out is the same, byte for byte, so the stage after it need not run again.
    assert run.made == ["base"]


def test_another_input_makes_the_stage_and_those_after_it_again(run: Run) -> None:
    run()
    run.source.write_text("8")
    assert run() == Number(value=9)
    assert run.made == ["base", "sum"]
    assert "its input source is another one" in run.said.getvalue()


def test_another_version_of_a_package_makes_the_stage_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    monkeypatch.setattr(stages, "package_versions", lambda: artifacts.package_versions() | {"torch": "99"})
    run()
    assert run.made == ["base", "sum"]
    assert "torch is now version 99" in run.said.getvalue()


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "its files were changed": lambda out: (out / "deep/base/number.txt").write_text("7"),
    "its manifest is gone": lambda out: (out / "deep/base/manifest.json").unlink(),
    "it is gone": lambda out: (out / "deep/base").rename(out / "deep/elsewhere"),
    "the file was changed": lambda out: (out / "sum.json").write_text('{"value": 5}'),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_result_is_made_again_and_the_reason_told(run: Run, reason: str) -> None:
    run()
    before = folder_digest(run.out / "deep/base")
    DAMAGES[reason](run.out)
    assert run() == Number(value=4)
    assert len(run.made) == 1
    assert reason in run.said.getvalue()
    assert folder_digest(run.out / "deep/base") == before


def test_a_result_without_its_record_is_not_trusted(run: Run) -> None:
    run()
    (run.out / ".stages/sum.json").unlink()
    run()
    assert run.made == ["sum"]


def test_a_stage_that_fails_leaves_nothing_and_is_tried_again(run: Run) -> None:
    def fail(base: Path) -> Number:
        raise KeyboardInterrupt

    whole = run._make_sum
    run._make_sum = fail  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run()
    assert not (run.out / "sum.json").exists()
    run._make_sum = whole  # type: ignore[method-assign]
    assert run() == Number(value=4)
    assert run.made == ["sum"]


def test_without_resume_an_earlier_run_is_refused_with_the_advice_to_resume(run: Run) -> None:
    run()
    with pytest.raises(OutputError, match="--resume"):
        run(resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_with_other_files_is_never_touched(run: Run, resume: bool) -> None:
    run.out.mkdir()
    (run.out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError):
        run(resume=resume)
    assert [path.name for path in run.out.iterdir()] == ["thesis.txt"]
