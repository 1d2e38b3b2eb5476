"""What many tests read and nobody changes: exports and engines of the tiny models, each made once per test run."""

from __future__ import annotations

import pytest

from tests.export.exports import TinyExports
from tests.tiny_engines import TinyEngines


@pytest.fixture(scope="session")
def tiny_exports(tmp_path_factory: pytest.TempPathFactory) -> TinyExports:
    return TinyExports(tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def tiny_engines(tmp_path_factory: pytest.TempPathFactory, tiny_exports: TinyExports) -> TinyEngines:
    return TinyEngines(tmp_path_factory.mktemp("engines"), tiny_exports)
