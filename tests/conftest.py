"""What many tests read and nobody changes, made once per test run: exports and engines of tiny models, a whole run."""

from __future__ import annotations

import pytest

from tests.export.exports import TinyExports
from tests.tiny_engines import TinyEngines
from tests.tiny_run import FinishedRun, finish_tiny_run


@pytest.fixture(scope="session")
def tiny_exports(tmp_path_factory: pytest.TempPathFactory) -> TinyExports:
    return TinyExports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def tiny_engines(tmp_path_factory: pytest.TempPathFactory, tiny_exports: TinyExports) -> TinyEngines:
    return TinyEngines(tmp_path_factory.mktemp("engines"), tiny_exports)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finish_tiny_run(tmp_path_factory.mktemp("run"))
