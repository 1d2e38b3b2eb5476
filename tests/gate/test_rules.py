from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export.errors import RecipeError
from hlap_export.gate.results import Estimate, Metric, MetricName
from hlap_export.gate.rules import Rule, load_rules, parse_rules


def rule(text: str) -> Rule:
    (found,) = parse_rules(f"rules:\n  - {{{text}}}").rules
    return found


def metric(name: MetricName, **where: int | str) -> Metric:
    return Metric.model_validate({"name": name, "estimate": Estimate.exactly(1.0), "source": "x", **where})


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("rules: [{metric: decode_ms, at_mots: 3}]", "rules.0.at_mots", "did you mean rules.0.at_most?"),
        ("rule: []", "rule", "did you mean rules?"),
        ("rules: [{metric: decode_mss, at_most: 3}]", "rules.0.metric", "did you mean decode_ms?"),
        ("rules: [{metric: decode_ms}]", "rules.0", "either at_most or at_least"),
        ("rules: [{metric: decode_ms, at_most: 3, at_least: 2}]", "rules.0", "either at_most or at_least"),
        ("rules: [{metric: decode_ms, against: dense, at_most: 3}]", "rules.0", "a change such as +5%"),
        ("rules: [{metric: decode_ms, at_most: +5%}]", "rules.0", "a change needs `against: dense|accepted`"),
        ("rules: [{metric: engine_bytes, at_most: 12 MiBs}]", "rules.0", "a size such as 12 MiB"),
        (
            "rules: [{metric: '*_ratio', against: dense, at_most: +5%}]",
            "rules.0",
            "no `against: dense` for prefill_ratio",
        ),
        ("rules: [{metric: decode_ms, check: x, at_most: 1}]", "rules.0", "no check's name but with metric: check"),
        ("rules: [{metric: decode_ms, task: x, at_most: 1}]", "rules.0", "no task's name but with metric: score"),
        ("rules: [{metric: decode_ms, tokens: 0, at_most: 1}]", "rules.0.tokens", "greater than or equal to 1"),
        ("unclear: maybe\nrules: [{metric: decode_ms, at_most: 1}]", "unclear", "'pass' or 'fail'"),
        ("rules: []", "rules", "at least 1 item"),
        ("unclear: pass", "g.yaml", "expected the key rules"),
        ("- a", "g.yaml", "rules: and a list of them"),
    ],
)
def test_a_mistake_in_the_rules_is_told_with_its_place_and_what_would_be_right(
    text: str, place: str, says: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_rules(text, where="g.yaml")
    assert place in caught.value.where
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("text", "bound", "words"),
    [
        ("metric: decode_ms, against: accepted, at_most: +5%", 1.05, "at most +5% against accepted"),
        ("metric: decode_ms, against: dense, at_most: -12.5%", 0.875, "at most -12.5% against dense"),
        ("metric: engine_bytes, at_most: 12 MiB", 12 * 2**20, "at most 12 MiB"),
        ("metric: greedy_agreement, at_least: 0.99", 0.99, "at least 0.99"),
        ("metric: failed_checks, at_most: 0", 0.0, "at most 0"),
    ],
)
def test_bounds_are_changes_sizes_or_numbers(text: str, bound: float, words: str) -> None:
    found = rule(text)
    assert found.bound == pytest.approx(bound)
    assert found.text == words


def test_a_rule_applies_to_every_metric_of_its_pattern_at_its_batch_and_length() -> None:
    every = rule("metric: 'decode_*', at_most: 1")
    assert every.applies_to(metric("decode_ms", batch=4, tokens=64))
    assert every.applies_to(metric("decode_ratio", batch=1, tokens=512))
    assert not every.applies_to(metric("prefill_ms", batch=1, tokens=64))
    long = rule("metric: decode_ms, batch: 1, tokens: 2048, at_most: 1")
    assert long.applies_to(metric("decode_ms", batch=1, tokens=2048))
    assert not long.applies_to(metric("decode_ms", batch=4, tokens=2048))
    assert not long.applies_to(metric("decode_ms", batch=1, tokens=64))
    named = rule("metric: check, check: prefill logits, at_most: 1")
    assert named.applies_to(metric("check", check="prefill logits"))
    assert not named.applies_to(metric("check", check="greedy agreement"))
    tasks = rule("metric: score, task: 'arc_* acc', at_least: 0.5")
    assert tasks.applies_to(metric("score", task="arc_easy acc"))
    assert not tasks.applies_to(metric("score", task="arc_easy acc_norm"))


def test_a_rules_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="pass an existing file to --rules"):
        load_rules(tmp_path / "gate.yaml")
