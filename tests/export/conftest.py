from __future__ import annotations

import pytest

from tests.export.exports import TinyExports


@pytest.fixture(scope="session")
def tiny_exports(tmp_path_factory: pytest.TempPathFactory) -> TinyExports:
    return TinyExports(tmp_path_factory.mktemp("exports"))
