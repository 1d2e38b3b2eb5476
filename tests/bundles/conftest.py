from __future__ import annotations

import pytest

from tests.bundles.bundled import TinyBundles
from tests.tiny_engines import TinyEngines


@pytest.fixture(scope="session")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory, tiny_engines: TinyEngines) -> TinyBundles:
    return TinyBundles(tmp_path_factory.mktemp("bundles"), tiny_engines)
