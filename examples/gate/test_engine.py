"""The gate as tests of yours: each verdict is one, named for what it is about.

    pytest test_engine.py --run run/ --accepted accepted.json --rules gate.yaml

The three options are those of conftest.py beside this file.
"""

from __future__ import annotations

import pytest

from hlap_export.gate import Verdict, gate


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    report = gate(option("--accepted"), option("--run"), option("--rules"))
    metafunc.parametrize("verdict", report.verdicts, ids=[f"{one.metric}: {one.rule}" for one in report.verdicts])


def test_the_engine_may_ship(verdict: Verdict) -> None:
    if verdict.outcome in ("unclear", "skipped"):
        pytest.skip(verdict.reason or verdict.outcome)
    assert verdict.outcome == "passed", f"{verdict.value} against {verdict.reference}, from {verdict.source}"
