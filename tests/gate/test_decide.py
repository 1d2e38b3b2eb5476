from __future__ import annotations

from typing import Any

import pytest

from hlap_export.gate.decide import decide
from hlap_export.gate.report import Verdict
from hlap_export.gate.results import Results
from hlap_export.gate.rules import parse_rules
from tests.gate.runs import MACHINE, plain_bench, results, text_losses, verify_report


def verdicts(rule: str, candidate: Results, accepted: Results | None = None, *, head: str = "") -> list[Verdict]:
    return list(decide(parse_rules(f"{head}\nrules:\n  - {{{rule}}}"), candidate, accepted))


def outcomes(rule: str, candidate: Results, accepted: Results | None = None, **options: Any) -> set[str]:
    return {verdict.outcome for verdict in verdicts(rule, candidate, accepted, **options)}


# Every point is 0.8 of the dense engine's time, give or take 2 %.
@pytest.mark.parametrize(
    ("bound", "outcome"),
    [("at_most: -17%", "passed"), ("at_most: -20%", "unclear"), ("at_most: -23%", "failed")],
)
def test_the_whole_interval_must_lie_beyond_the_bound_to_fail_and_within_it_to_pass(bound: str, outcome: str) -> None:
    assert outcomes(f"metric: decode_ms, against: dense, {bound}", results()) == {outcome}


@pytest.mark.parametrize(
    ("bound", "outcome"),
    [("at_least: -23%", "passed"), ("at_least: -20%", "unclear"), ("at_least: -17%", "failed")],
)
def test_a_bound_from_below_is_the_mirror_image(bound: str, outcome: str) -> None:
    assert outcomes(f"metric: decode_ms, against: dense, {bound}", results()) == {outcome}


def test_a_release_can_ask_that_nothing_is_unclear_for_all_rules_or_for_one() -> None:
    rule = "metric: decode_ms, against: dense, at_most: -20%"
    assert outcomes(rule, results(), head="unclear: fail") == {"failed"}
    assert outcomes(f"{rule}, unclear: fail", results()) == {"failed"}
    assert outcomes(f"{rule}, unclear: pass", results(), head="unclear: fail") == {"unclear"}
    (first, *_) = verdicts(rule, results(), head="unclear: fail")
    assert "unclear, which fails here" in str(first.reason)


def test_the_dense_engine_of_the_same_run_is_what_dense_means() -> None:
    found = {
        verdict.name: verdict for verdict in verdicts("metric: '*_bytes*', against: dense, at_most: +0%", results())
    }
    assert found["peak_memory_bytes"].reference == pytest.approx(110 * 2**20)
    assert found["kv_bytes_per_token"].found is not None
    assert found["kv_bytes_per_token"].found.value == pytest.approx(0.75)
    assert {verdict.outcome for verdict in found.values()} == {"passed"}
    (perplexity,) = verdicts("metric: perplexity, against: dense, at_most: +15%", results())
    assert perplexity.outcome == "failed"
    assert perplexity.reference == pytest.approx(15.28, abs=0.01)


def test_what_equals_its_bound_is_within_it() -> None:
    assert outcomes("metric: engine_bytes, at_most: 10 MiB", results()) == {"passed"}
    assert outcomes("metric: kv_bytes_per_token, against: dense, at_most: -25%", results()) == {"passed"}
    assert outcomes("metric: greedy_agreement, at_least: 1", results()) == {"passed"}


def test_ratios_of_two_runs_are_compared_though_the_machines_differ_but_times_are_not() -> None:
    elsewhere = results(timed=plain_bench(machine=MACHINE | {"cpu": "Faster CPU"}))
    slower = results(timed=plain_bench(slower=1.2))
    assert outcomes("metric: decode_ratio, against: accepted, at_most: +5%", slower, elsewhere) == {"failed"}
    (first, *_) = verdicts("metric: decode_ms, against: accepted, at_most: +5%", slower, elsewhere)
    assert first.outcome == "unclear"
    assert "another machine (cpu: Faster CPU, here Example CPU); decode_ratio can be compared" in str(first.reason)
    more_threads = results(timed=plain_bench(threads=4))
    assert outcomes("metric: decode_ms, against: accepted, at_most: +5%", slower, more_threads) == {"unclear"}
    assert outcomes("metric: decode_ms, against: accepted, at_most: +5%", slower, results()) == {"failed"}


def test_times_from_a_disturbed_machine_decide_nothing_but_ratios_do() -> None:
    calm = plain_bench()
    conditions = calm.conditions.model_copy(update={"disturbed": ("other processes took 40% of the CPU time",)})
    disturbed = results(timed=plain_bench(slower=1.2, conditions=conditions))
    for rule in ("metric: decode_ms, at_most: 0.1", "metric: decode_ms, against: accepted, at_most: +5%"):
        (first, *_) = verdicts(rule, disturbed, results(timed=calm))
        assert (first.outcome, first.reason) == ("unclear", "other processes took 40% of the CPU time")
    assert outcomes("metric: decode_ms, against: dense, at_most: -20%", disturbed) == {"failed"}
    assert outcomes("metric: decode_ratio, against: accepted, at_most: +5%", disturbed, results()) == {"failed"}


def test_an_engine_that_stopped_being_measured_fails_and_one_that_is_new_is_skipped() -> None:
    whole = results(timed=plain_bench())
    shorter = results(timed=plain_bench(latency=plain_bench().latency[:-1]))
    rule = "metric: decode_ms, against: accepted, at_most: +5%"
    found = {verdict.metric: verdict for verdict in verdicts(rule, shorter, whole)}
    assert found["decode_ms after 2048 tokens"].outcome == "failed"
    assert found["decode_ms after 2048 tokens"].reason == "the accepted run has it, the candidate hasn't"
    new = {verdict.metric: verdict for verdict in verdicts(rule, whole, shorter)}
    assert new["decode_ms after 2048 tokens"].outcome == "skipped"
    assert new["decode_ms after 64 tokens"].outcome == "passed"


def test_a_rule_that_holds_nothing_fails() -> None:
    (found,) = verdicts("metric: decode_ms, tokens: 4096, at_most: 1", results())
    assert (found.outcome, found.metric) == ("failed", "decode_ms (tokens 4096)")
    assert found.reason == "the candidate has no such number"


def test_without_a_dense_engine_or_an_accepted_run_a_rule_is_skipped() -> None:
    losses, _ = text_losses()
    from_verify = verify_report(losses, losses)
    perplexity = from_verify.perplexity
    assert perplexity is not None
    alone = perplexity.model_copy(update={"increase_ratio": None})
    single = results(from_verify.model_copy(update={"perplexity": alone}))
    assert outcomes("metric: perplexity, against: dense, at_most: +5%", single) == {"skipped"}
    assert outcomes("metric: decode_ratio, against: accepted, at_most: +5%", results()) == {"skipped"}


def test_a_count_of_zero_is_its_own_equal_and_nothing_else_is_a_multiple_of_it() -> None:
    rule = "metric: failed_checks, against: accepted, at_most: +0%"
    assert outcomes(rule, results(), results()) == {"passed"}
    failing = verify_report(
        *text_losses(),
        passed=False,
        checks=({"name": "x", "value": 2.0, "bound": 1.0, "rule": "at most", "passed": False, "location": None},),
    )
    assert outcomes(rule, results(failing), results()) == {"skipped"}
    assert outcomes("metric: failed_checks, at_most: 0", results(failing)) == {"failed"}


def test_perplexities_of_different_texts_are_not_paired() -> None:
    losses, dense = text_losses()
    ours = verify_report(losses + 0.02, dense)
    same_text, other_text = (
        verify_report(losses, dense),
        verify_report(
            losses,
            dense,
            tokens={"kind": "text", "path": "b.txt", "sha256": "0" * 64, "seed": None, "reason": None},
        ),
    )
    rule = "metric: perplexity, against: accepted, at_most: +1%"
    assert outcomes(rule, results(ours), results(same_text)) == {"failed"}
    assert outcomes(rule, results(ours), results(other_text)) == {"unclear"}
