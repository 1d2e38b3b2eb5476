"""What commands print beside their tables."""

from __future__ import annotations

import io

from rich.console import Console

from hlap_export.bench.report import AdjustedLength, BenchReport
from hlap_export.terminal import render
from tests.gate.runs import plain_bench


def printed(report: BenchReport) -> str:
    drawn = io.StringIO()
    Console(file=drawn, width=120, color_system=None).print(render(report))
    return drawn.getvalue()


def test_a_calm_bench_of_what_was_asked_for_has_no_notes() -> None:
    text = printed(plain_bench())
    assert "decode after 2048 tokens" in text
    assert not [words for words in ("*", "busy", "cut to") if words in text]


def test_a_bench_shows_slower_steps_rates_and_limits_of_both_engines() -> None:
    """Rows by hand: p90 and p99 are 1.1 and 1.3 times the median, the limit is half of it."""
    lines = printed(plain_bench()).splitlines()
    at = next(index for index, line in enumerate(lines) if "decode after 2048 tokens" in line and "dense  " in line)
    shown = [" ".join(line.split()) for line in lines[at : at + 2]]
    assert shown == [
        "decode after 2048 tokens dense 1.87 ms 2.21 ms 588 0.85 ms",
        "this engine 1.50 ms 1.77 ms 735 0.68 ms",
    ]
    assert "weights" in printed(plain_bench())
    assert "the time to the first token" in printed(plain_bench())


def test_a_bench_says_why_not_to_trust_it_and_what_it_left_out() -> None:
    rows = plain_bench().latency
    noisy = rows[0].model_copy(update={"noisy": True, "noise": "the ratio's interval is 40% wide (limit 10%)"})
    conditions = plain_bench().conditions.model_copy(
        update={"disturbed": ("other processes took 40% of the CPU time",)}
    )
    cut = AdjustedLength(phase="decode", asked=9000, used=4095, reason="the model has positions for 4095 tokens")
    text = printed(plain_bench(latency=(noisy, *rows[1:]), conditions=conditions, adjusted_lengths=(cut,)))
    assert "* repeats of this row spread widely" in text
    assert "the machine was busy: other processes took 40% of the CPU time" in text
    assert "decode of 9000 tokens cut to 4095 tokens: the model has positions for 4095 tokens" in text
