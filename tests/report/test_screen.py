from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from hlap_export.report.html import html_report
from hlap_export.report.markdown import markdown_report
from hlap_export.report.screen import render_summary
from hlap_export.report.summary import Summary
from tests.report.sample import full_summary, sample_summary


def drawn(summary: Summary, width: int = 100) -> str:
    console = Console(file=StringIO(), width=width)
    console.print(render_summary(summary))
    return console.file.getvalue()  # type: ignore[attr-defined]


def row(text: str, start: str) -> list[str]:
    """The cells of the line that starts with these words."""
    line = next(line for line in text.splitlines() if line.strip().startswith(start))
    return line.strip().removeprefix(start).split("  ")


def cells(text: str, start: str) -> list[str]:
    return [cell.strip() for cell in row(text, start) if cell.strip()]


def test_the_table_shows_dense_pruned_and_change_of_each_thing() -> None:
    text = drawn(sample_summary())
    assert cells(text, "parameters") == ["2.41 M", "2.29 M", "−5.1 %"]
    assert cells(text, "KV cache per token") == ["3.00 KiB", "2.25 KiB", "−25.0 %"]
    assert cells(text, "perplexity (calibration)") == ["12.31", "12.80", "+4.0 %"]
    assert cells(text, "every alpha 1") == ["14.20", "+15.4 %"]
    assert cells(text, "attention dropped") == ["13.55", "+10.1 %"]
    assert cells(text, "prefill of 256 tokens") == ["32.10 ms", "27.90 ms", "×1.15", "1.13 to 1.18"]
    assert cells(text, "decode after 512 tokens") == ["1.31 ms", "1.09 ms", "×1.20", "1.16 to 1.25 *"]


def test_intervals_stand_beside_perplexities_and_batches_beside_lengths() -> None:
    text = drawn(full_summary())
    assert cells(text, "perplexity (held-out)") == ["13.60", "14.11", "+3.8 %", "+2.0 to +5.5 %"]
    assert cells(text, "4 × decode after 512") == ["1.31 ms", "1.09 ms", "×1.20", "1.16 to 1.25 *"]


def test_the_layers_are_a_strip_and_each_change_is_named() -> None:
    text = drawn(sample_summary())
    assert "●●●●●●●●●◍◐○" in text
    assert "layer 9: 4 query and 1 KV heads   layer 10: alpha 0.3   layer 11: alpha 0" in text


def test_each_perplexity_says_its_text_and_windows() -> None:
    text = drawn(sample_summary())
    assert "calibration.txt, 32 windows of 256 tokens" in text
    assert "evaluation.txt, 48 windows of 256 tokens" in text


def test_a_failed_check_is_named_with_its_bound_and_never_called_verified() -> None:
    text = drawn(sample_summary(logit_error=3e-2))
    assert "✗ not verified: prefill logits 0.03 (at most 1.0e-04)" in text
    assert "✓" not in text


def test_rows_that_spread_widely_are_marked() -> None:
    assert "spread widely" in drawn(sample_summary())


def test_a_busy_machine_is_called_so_and_not_a_row_that_spreads() -> None:
    """`is_noisy` is either; no row has a star here."""
    latency = tuple(row.model_copy(update={"noise": None}) for row in sample_summary().latency)
    busy = ("other processes took 40% of the CPU time", "the hypervisor gave 9% to others")
    summary = sample_summary().model_copy(update={"latency": latency, "disturbed": busy})
    assert summary.is_noisy
    for text in (drawn(summary), markdown_report(summary), html_report(summary)):
        assert "spread widely" not in text
        assert all(f"he machine was busy: {reason}" in text for reason in busy)


@pytest.mark.parametrize("width", [80, 100, 160])
def test_nothing_is_cut_off(width: int) -> None:
    text = drawn(full_summary(), width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
