from __future__ import annotations

import pytest

from tests.tiny_engines import TinyEngines
from tests.tiny_run import FinishedRun, finish_tiny_run


@pytest.fixture(scope="session")
def tiny_engines(tmp_path_factory: pytest.TempPathFactory) -> TinyEngines:
    return TinyEngines(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    return finish_tiny_run(tmp_path_factory.mktemp("run"))
