from __future__ import annotations

import pytest

from hlap_export.report.markdown import markdown_report
from hlap_export.report.summary import Summary
from tests.report.sample import built_summary, full_summary, sample_summary


def test_the_report_holds_every_number_of_the_summary() -> None:
    text = markdown_report(sample_summary())
    assert text.startswith("# reference model: 2 of 12 layers lose their attention and 1 keeps fewer heads\n")
    for row in (
        "| 10 | value only | 8 | 2 | 0.3 |",
        "| 9 | full | 4 | 1 | – |",
        "| KV cache per token | 3.00 KiB | 2.25 KiB | −25.0 % |",
        "| calibration: calibration.txt, 32 windows of 256 tokens | 12.31 | **12.80** | – | 14.20 | 13.55 |",
        "| held-out: evaluation.txt, 48 windows of 256 tokens | 13.60 | **14.11** | – | – | – |",
        "| prefill logits | 2.1e-07 | at most 1.0e-04 | passed |",
        "| prefill of 256 tokens | 32.10 ms | 35.00 ms | 36.00 ms | 27.90 ms | 29.00 ms | 29.50 ms "
        "| ×1.15 | 1.13 to 1.18 | ×1.21 |",
        "hlap-export 0.1.0, torch 2.13.0",
    ):
        assert row in text


@pytest.mark.parametrize(
    ("summary", "num_tables"),
    [(sample_summary(), 7), (full_summary(), 9), (built_summary(), 6)],
    ids=["", "full", "built"],
)
def test_every_table_row_has_as_many_cells_as_its_heading(summary: Summary, num_tables: int) -> None:
    widths: list[set[int]] = [set()]
    for line in markdown_report(summary).splitlines():
        if line.startswith("|"):
            widths[-1].add(line.count("|"))
        elif widths[-1]:
            widths.append(set())
    tables = [found for found in widths if found]
    assert len(tables) == num_tables
    assert all(len(found) == 1 for found in tables)


def test_a_pipe_in_a_name_does_not_end_its_cell() -> None:
    base = sample_summary()
    texts = tuple(
        row.model_copy(update={"text": row.text.model_copy(update={"name": "a|b.txt"})}) for row in base.perplexities
    )
    assert "| held-out: a\\|b.txt, 48" in markdown_report(base.model_copy(update={"perplexities": texts}))


def test_a_failed_check_stands_out() -> None:
    text = markdown_report(sample_summary(logit_error=3e-2))
    assert "Not verified" in text
    assert "| prefill logits | 0.03 | at most 1.0e-04 | **failed** |" in text


def test_agreement_origins_and_longer_contexts_are_in_the_text_too() -> None:
    text = markdown_report(full_summary())
    for row in (
        "| cached decode logits | 128 | 1.1e-08 | 2.5e-12 | 6.1e-12 | 100.0 % | 99.8 % |",
        "| **attention 9** | **+9.0 %** | **+8.1 % to +9.9 %** | **−25.0 %** | **−6.0 %** | **−20.0 %** "
        "| **+22.5 %** |",
        "| attention 8 | +16.0 % | +14.4 % to +17.6 % | −33.3 % | −8.0 % | −26.7 % | +40.0 % |",
        "| decode after 4096 tokens, extrapolated | 2.90 ms | | | 2.10 ms | | | ×1.4 | 1.30 to 1.47 | |",
        "| held-out: evaluation.txt, 48 windows of 256 tokens | 13.60 | **14.11** | +2.0 to +5.5 % | – | – |",
        "| decode after 512 tokens | 763 | 917 | 0.90 ms | 0.70 ms |",
        f"| bench.json | `{'3' * 64}` | checkpoint |",
    ):
        assert row in text
