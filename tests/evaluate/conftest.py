"""The reference model with three layers pruned, as a checkpoint for lm_eval's own backend and as an engine for ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export import build, export, plan, prune, reference_model
from tests.evaluate.tasks import write_tasks

ALPHAS = {9: 0.2, 10: 0.3, 11: 0.6}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "checkpoint"
    prune(reference_model.path(), plan(reference_model.path(), method="fixed", alphas=ALPHAS), folder)
    return folder


@pytest.fixture(scope="session")
def engine(checkpoint: Path) -> Path:
    export(checkpoint, checkpoint.parent / "onnx", flavour="ort")
    build(checkpoint.parent / "onnx", checkpoint.parent / "engine")
    return checkpoint.parent / "engine"


@pytest.fixture(scope="session")
def tasks_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))
