"""The verb: what it decides on planted regressions and on runs that don't differ, what it writes, what it accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hlap_export.bench.report import BenchReport
from hlap_export.errors import ArtefactError, CheckFailed, OutputError
from hlap_export.gate import GateReport, gate
from hlap_export.gate.collect import read_results
from hlap_export.gate.decide import decide
from hlap_export.gate.rules import load_rules, parse_rules
from hlap_export.verify.report import VerifyReport
from tests.gate.runs import evaluation, plain_bench, results, simulated_bench, text_losses, verify_report

RULES = Path(__file__).parents[2] / "examples/gate/gate.yaml"
"""The rules that users start from."""

MACHINES: dict[str, dict[str, float]] = {
    "quiet": {"between": 0.003, "within": 0.02, "alike": 0.3},
    "usual": {"between": 0.010, "within": 0.05, "alike": 0.5},
    "loud": {"between": 0.030, "within": 0.15, "alike": 0.7},
}
"""How much rounds differ, how much repeats do, how alike neighbours are."""


def write_run(folder: Path, verified: VerifyReport, timed: BenchReport) -> Path:
    folder.mkdir()
    (folder / "verify.json").write_text(verified.model_dump_json())
    (folder / "bench.json").write_text(timed.model_dump_json())
    return folder


@pytest.fixture
def accepted(tmp_path: Path) -> Path:
    path = tmp_path / "accepted.json"
    path.write_text(results().model_dump_json())
    return path


def failed(report: GateReport) -> set[str]:
    return {verdict.name for verdict in report.verdicts if verdict.outcome == "failed"}


def test_a_run_like_the_accepted_one_passes(accepted: Path, tmp_path: Path) -> None:
    report = gate(accepted, write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench()), RULES)
    assert report.passed
    assert (report.num_failed, report.num_unclear, report.num_skipped) == (0, 0, 0)
    assert report.num_passed == len(report.verdicts) > 10
    report.require_passed()


@pytest.mark.parametrize("machine", ["quiet", "usual"])
def test_a_planted_slowdown_of_ten_percent_is_caught(machine: str) -> None:
    random = np.random.default_rng(21)
    caught = 0
    for _ in range(20):
        before, after = (
            results(timed=simulated_bench(random, ratio=ratio, **MACHINES[machine])) for ratio in (0.8, 0.88)
        )
        caught += any(
            verdict.outcome == "failed" and verdict.name in ("decode_ratio", "prefill_ratio")
            for verdict in decide(load_rules(RULES), after, before)
        )
    assert caught >= 19


def test_a_slowdown_of_ten_percent_in_two_plain_runs_fails_in_every_point(accepted: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench(slower=1.1))
    report = gate(accepted, run, RULES)
    slower = [verdict for verdict in report.verdicts if verdict.name.endswith("_ratio")]
    assert {verdict.outcome for verdict in slower} == {"failed"}
    assert len(slower) == 6
    with pytest.raises(CheckFailed, match=r"prefill_ratio of 64 tokens: expected at most \+5% against accepted"):
        report.require_passed()


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_regression_of_perplexity_is_caught(seed: int, accepted: Path, tmp_path: Path) -> None:
    """Two percent, on windows whose losses spread twenty times as widely."""
    losses, dense = text_losses()
    worse = losses + np.random.default_rng(seed).normal(0.02, 0.01, losses.size)
    report = gate(accepted, write_run(tmp_path / "run", verify_report(worse, dense), plain_bench()), RULES)
    assert failed(report) == {"perplexity"}
    with pytest.raises(CheckFailed, match="perplexity"):
        report.require_passed()


@pytest.mark.parametrize("machine", MACHINES)
def test_of_forty_runs_that_do_not_differ_at_most_two_are_flagged(machine: str) -> None:
    """A/A: both benches are of the same engine, on the same made-up machine; a run is flagged if any rule fails."""
    random = np.random.default_rng(31)
    flagged = 0
    for _ in range(40):
        before, after = (results(timed=simulated_bench(random, **MACHINES[machine])) for _ in range(2))
        speed = [
            verdict for verdict in decide(load_rules(RULES), after, before) if verdict.name.endswith(("_ratio", "_ms"))
        ]
        assert len(speed) >= 12
        flagged += any(verdict.outcome == "failed" for verdict in speed)
    assert flagged <= 2


@pytest.mark.parametrize("machine", MACHINES)
def test_of_eighty_engines_that_are_as_fast_as_the_dense_one_at_most_four_are_flagged(machine: str) -> None:
    """The rule "no slower than dense" at its own limit, where each of its six numbers has a chance to fail."""
    random = np.random.default_rng(51)
    rules = parse_rules("rules: [{metric: '*_ms', against: dense, at_most: +0%}]")
    runs = [results(timed=simulated_bench(random, ratio=1.0, **MACHINES[machine])) for _ in range(80)]
    flagged = sum(any(verdict.outcome == "failed" for verdict in decide(rules, run, None)) for run in runs)
    assert flagged <= 4


def test_a_loud_machine_is_called_unclear_rather_than_failed_or_passed() -> None:
    random = np.random.default_rng(41)
    before, after = (results(timed=simulated_bench(random, ratio=ratio, **MACHINES["loud"])) for ratio in (0.8, 0.84))
    outcomes = [
        verdict.outcome for verdict in decide(load_rules(RULES), after, before) if verdict.name.endswith("_ratio")
    ]
    assert "unclear" in outcomes
    assert "failed" not in outcomes


def test_the_first_run_is_accepted_without_a_baseline_and_then_compared_with(tmp_path: Path) -> None:
    run, accepted = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench()), tmp_path / "new/a.json"
    with pytest.raises(ArtefactError, match=r"new/a\.json"):
        gate(accepted, run, RULES)
    report = gate(accepted, run, RULES, accept=True)
    assert report.accepted
    assert report.num_skipped > 0
    assert read_results(accepted) == read_results(run)
    assert gate(accepted, run, RULES).num_skipped == 0


def test_a_meant_change_can_be_accepted_and_is_the_baseline_then(accepted: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench(slower=1.1))
    assert not gate(accepted, run, RULES).passed
    report = gate(accepted, run, RULES, accept=True)
    assert report.accepted
    excused = [verdict for verdict in report.verdicts if verdict.reason == "accepted with --accept"]
    assert {verdict.name for verdict in excused} == {"decode_ratio", "prefill_ratio"}
    assert gate(accepted, run, RULES).passed


def test_what_fails_without_regard_to_the_accepted_run_is_not_accepted(accepted: Path, tmp_path: Path) -> None:
    before = accepted.read_bytes()
    run = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench(slower=1.4))
    report = gate(accepted, run, RULES, accept=True)
    assert (report.passed, report.accepted) == (False, False)
    assert accepted.read_bytes() == before


@pytest.mark.parametrize("place", ["run", "run/bench.json"])
def test_accepting_never_overwrites_a_runs_own_files(place: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench())
    with pytest.raises(OutputError, match="a new file for --accept"):
        gate(tmp_path / place, run, RULES, accept=True)


def test_the_junit_file_has_a_case_for_each_verdict_with_its_numbers(accepted: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench(slower=1.1))
    report = gate(accepted, run, RULES, junit=tmp_path / "out/junit.xml")
    (suite,) = ElementTree.parse(tmp_path / "out/junit.xml").getroot()
    cases = suite.findall("testcase")
    assert len(cases) == len(report.verdicts) == int(suite.attrib["tests"])
    failures = [case for case in cases if case.find("failure") is not None]
    assert len(failures) == report.num_failed == int(suite.attrib["failures"]) == 6
    message: Any = failures[0].find("failure")
    assert message.attrib["message"] == (
        "prefill_ratio of 64 tokens: at most +5% against accepted, found +10.0% (+7.4 to +12.6%)"
    )
    assert "bench.json#/latency/0" in message.text


def test_a_character_that_xml_has_no_form_for_does_not_break_the_file(tmp_path: Path) -> None:
    score = evaluation(0.5, 0.01, task="a\x1b\x00b")
    (tmp_path / "eval.json").write_text(score.model_dump_json())
    (tmp_path / "rules.yaml").write_text("rules: [{metric: score, at_least: 0.9}]")
    gate(tmp_path / "none.json", tmp_path / "eval.json", tmp_path / "rules.yaml", junit=tmp_path / "junit.xml")
    (case,) = ElementTree.parse(tmp_path / "junit.xml").iter("testcase")
    assert case.attrib["name"] == "score a\ufffd\ufffdb acc: at least 0.9"


def test_what_was_skipped_or_unclear_is_skipped_in_junit_and_says_why(accepted: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench(slower=1.04))
    report = gate(accepted, run, RULES, junit=tmp_path / "junit.xml")
    assert report.num_unclear == 6
    messages = [case.attrib["message"] for case in ElementTree.parse(tmp_path / "junit.xml").iter("skipped")]
    assert len(messages) == 6
    assert all("the interval reaches over the bound" in message for message in messages)


def test_the_report_is_json_that_comes_back(accepted: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", verify_report(*text_losses()), plain_bench())
    report = gate(accepted, run, RULES)
    assert GateReport.model_validate_json(report.model_dump_json()) == report
    assert json.loads(report.model_dump_json())["verdicts"][0]["source"].startswith("verify.json#/")
