"""Where the run, the accepted results and the rules lie."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run", type=Path, default=HERE / "run", help="a run's folder, or its results.json")
    parser.addoption("--accepted", type=Path, default=HERE / "accepted.json", help="what `gate --accept` wrote")
    parser.addoption("--rules", type=Path, default=HERE / "gate.yaml")
