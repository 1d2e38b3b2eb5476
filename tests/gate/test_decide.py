from __future__ import annotations

from typing import Any

import pytest

from hlap_export.gate.collect import collect
from hlap_export.gate.decide import decide
from hlap_export.gate.report import Verdict, in_words
from hlap_export.gate.results import Results
from hlap_export.gate.rules import parse_rules
from tests.bench.rows import latency_row as row_by_hand
from tests.gate.runs import MACHINE, bench_report, evaluation, plain_bench, results, text_losses, verify_report


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


def peak_memory(mebibytes: int, *, spread: int = 1, **changes: Any) -> Results:
    spans = {"": 0, "_low": -spread, "_high": spread}
    peaks = {f"peak_rss{name}_bytes": (mebibytes + more) * 2**20 for name, more in spans.items()}
    row = plain_bench().candidate_memory.model_copy(update=peaks)
    return results(timed=plain_bench(candidate_memory=row, **changes))


@pytest.mark.parametrize(
    ("mebibytes", "spread", "outcome"), [(103, 1, "passed"), (106, 3, "unclear"), (120, 3, "failed")]
)
def test_peak_memory_is_decided_by_the_span_of_its_processes(mebibytes: int, spread: int, outcome: str) -> None:
    rule = "metric: peak_memory_bytes, against: accepted, at_most: +5%"
    assert outcomes(rule, peak_memory(mebibytes, spread=spread), peak_memory(100)) == {outcome}


def test_peak_memory_is_compared_for_the_same_prompts_threads_and_cores_alone() -> None:
    rule = "metric: peak_memory_bytes, against: accepted, at_most: +5%"
    larger, known = peak_memory(120), peak_memory(100)
    for changes in ({"threads": 8}, {"machine": MACHINE | {"cores": 8}}):
        (found,) = verdicts(rule, larger, peak_memory(100, **changes))
        assert (found.outcome, found.metric) == ("unclear", "peak_memory_bytes of 1024 tokens")
        assert "another machine" in str(found.reason)
    assert outcomes(rule, larger, peak_memory(100, machine=MACHINE | {"cpu": "Other CPU"})) == {"failed"}
    for changes in ({"memory_prompt_length": 512}, {"memory_batch": 4}):
        found = {one.metric: one.outcome for one in verdicts(rule, peak_memory(120, **changes), known)}
        assert found.pop("peak_memory_bytes of 1024 tokens") == "failed"
        assert list(found.values()) == ["skipped"]


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


def test_a_rule_against_dense_fails_where_no_dense_engine_was_measured() -> None:
    losses, _ = text_losses()
    from_verify = verify_report(losses, losses)
    perplexity = from_verify.perplexity
    assert perplexity is not None
    alone = perplexity.model_copy(update={"increase_ratio": None})
    single = results(from_verify.model_copy(update={"perplexity": alone}))
    (found,) = verdicts("metric: perplexity, against: dense, at_most: +5%", single)
    assert (found.outcome, found.reason) == ("failed", "no dense engine was measured beside it")


def test_a_rule_against_the_accepted_run_is_skipped_where_nothing_was_accepted() -> None:
    assert outcomes("metric: decode_ratio, against: accepted, at_most: +5%", results()) == {"skipped"}


def test_a_count_of_zero_is_its_own_equal_and_anything_else_is_more() -> None:
    rule = "metric: failed_checks, against: accepted, at_most: +0%"
    assert outcomes(rule, results(), results()) == {"passed"}
    failing = verify_report(
        *text_losses(),
        passed=False,
        checks=({"name": "x", "value": 2.0, "bound": 1.0, "rule": "at most", "passed": False, "location": None},),
    )
    (found,) = verdicts(rule, results(failing), results())
    assert (found.outcome, in_words(found)) == ("failed", "1 instead of 0")
    assert outcomes(rule, results(), results(failing)) == {"passed"}
    assert outcomes("metric: failed_checks, against: accepted, at_least: +0%", results(failing), results()) == {
        "passed"
    }
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
    (found,) = verdicts("metric: perplexity, against: accepted, at_most: +100%", results(ours), results(other_text))
    assert (found.outcome, found.reason) == ("unclear", "the accepted run scored another text, or other windows of it")


def test_a_single_window_of_text_decides_nothing() -> None:
    losses, dense = (each[:1] for each in text_losses())
    single = results(verify_report(losses, dense))
    for against in ("against: accepted, at_most: +50%", "against: dense, at_most: +50%", "at_most: 1000"):
        assert outcomes(f"metric: perplexity, {against}", single, single) == {"unclear"}


def scored(value: float, error: float = 0.0, **changes: Any) -> Results:
    """Results of one task."""
    return collect(None, None, evaluation(value, error, **changes))


def test_a_score_that_is_no_number_fails_its_rule() -> None:
    (found,) = verdicts(
        "metric: score, at_least: 0.1", collect(verify_report(*text_losses()), None, evaluation(None, None))
    )
    assert (found.outcome, found.reason) == ("failed", "the candidate has no such number")


# A score against 0.6 +- 0.02 (95%), or against 0.
@pytest.mark.parametrize(
    ("value", "error", "accepted", "bound", "outcome"),
    [
        (0.0, 0.0, 0.6, "at_least: -3%", "failed"),
        (0.01, 0.01, 0.6, "at_least: -3%", "failed"),
        (0.01, 0.01, 0.6, "at_least: -99%", "unclear"),
        (0.0, 0.0, 0.6, "at_most: +0%", "passed"),
        (0.6, 0.01, 0.0, "at_least: -3%", "passed"),
        (0.6, 0.01, 0.0, "at_most: +3%", "failed"),
        (0.01, 0.01, 0.0, "at_most: +3%", "unclear"),
        (0.0, 0.0, 0.0, "at_least: +0%", "passed"),
    ],
)
@pytest.mark.parametrize("against", ["accepted", "dense"])
def test_what_falls_to_zero_or_rises_from_it_is_decided(
    value: float, error: float, accepted: float, bound: str, outcome: str, against: str
) -> None:
    rule, before = f"metric: score, against: {against}, {bound}", accepted and 0.01
    candidate = scored(value, error, baseline=accepted, baseline_standard_error=before)
    assert outcomes(rule, candidate, scored(accepted, before)) == {outcome}


@pytest.mark.parametrize(
    ("num_slower", "slower", "outcome"),
    [(1, 1.026, "unclear"), (1, 1.045, "failed"), (6, 1.026, "failed")],
)
def test_one_of_many_numbers_must_be_farther_beyond_the_bound_than_one_alone_or_all_of_them(
    num_slower: int, slower: float, outcome: str
) -> None:
    """Half-widths are 2%: alone that is enough from +2.1% on; for one of six it is 4.850 / 2.776 times as much."""
    rows = [row_by_hand("decode", tokens, slower if tokens <= num_slower else 0.9, 1.0) for tokens in range(1, 7)]
    found = results(timed=bench_report(tuple(rows)))
    rule = "against: dense, at_most: +0%"
    assert outcomes(f"metric: decode_ms, tokens: 1, {rule}", found) == {"failed"}
    assert outcomes(f"metric: decode_ms, {rule}", found) == {outcome} | ({"passed"} if num_slower < 6 else set())


def test_a_bound_that_leaves_room_for_chance_is_none_the_wider_for_many_numbers() -> None:
    """+7.2% are +5.1% at the least; and by chance an engine that hasn't changed doesn't come near."""
    rows = [row_by_hand("decode", tokens, 1.072 if tokens == 1 else 0.9, 1.0) for tokens in range(1, 7)]
    found = results(timed=bench_report(tuple(rows)))
    assert outcomes("metric: decode_ms, against: dense, at_most: +5%", found) == {"failed", "passed"}
