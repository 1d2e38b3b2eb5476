from __future__ import annotations

import numpy as np
import pytest

from hlap_export.bench.extrapolation import extrapolate
from hlap_export.bench.report import LatencyRow
from tests.bench.rows import latency_row


def rows(contexts: tuple[int, ...], *, batch: int = 1, width: float = 0.02) -> list[LatencyRow]:
    """Decode at 1 ms and 1 microsecond per cached token; the baseline takes twice as long."""
    return [
        latency_row("decode", context, 1 + context / 1000, 2 + context / 500, batch=batch, width=width)
        for context in contexts
    ]


def test_times_on_a_line_are_continued_on_it_up_to_the_models_positions() -> None:
    found = extrapolate(rows((64, 512, 2048)), longest=10_000)
    assert [row.num_tokens for row in found] == [4096, 8192, 10_000]
    assert [row.longest_timed for row in found] == [2048] * 3
    for row in found:
        assert row.candidate_ms == pytest.approx(1 + row.num_tokens / 1000)
        assert row.baseline_ms == pytest.approx(2 + row.num_tokens / 500)
        assert row.ratio == pytest.approx(0.5)
        assert row.ratio_low < 0.5 < row.ratio_high
        assert row.candidate_low_ms < row.candidate_ms < row.candidate_high_ms


def test_nothing_is_said_beyond_the_models_positions_or_from_a_single_point() -> None:
    assert extrapolate(rows((64, 2048)), longest=2048) == ()
    assert extrapolate(rows((64,)), longest=10_000) == ()
    assert extrapolate([latency_row("prefill", length, 1.0, 2.0) for length in (64, 128)], longest=10_000) == ()


def test_each_batch_has_its_own_line() -> None:
    found = extrapolate([*rows((64, 512)), *rows((64, 256), batch=4)], longest=1024)
    assert [(row.batch, row.num_tokens) for row in found] == [(1, 1024), (4, 512), (4, 1024)]


def test_the_interval_widens_with_the_distance() -> None:
    near, *_, far = extrapolate(rows((64, 512, 2048)), longest=100_000)
    relative = [(row.candidate_high_ms - row.candidate_low_ms) / row.candidate_ms for row in (near, far)]
    assert relative[0] < relative[1]


def test_points_off_the_line_widen_it_beyond_their_own_errors() -> None:
    straight = rows((64, 512, 1024, 2048), width=0.001)
    bent = [*straight[:2], latency_row("decode", 1024, 2.6, 4.048, width=0.001), straight[3]]
    widths = [
        row.candidate_high_ms - row.candidate_low_ms
        for (row,) in (extrapolate(given, longest=4096) for given in (straight, bent))
    ]
    assert widths[1] > 5 * widths[0]


def test_the_true_time_lies_in_the_interval_95_times_in_a_hundred() -> None:
    random = np.random.default_rng(2)
    held = 0
    for _ in range(400):
        timed = [
            latency_row("decode", context, (1 + context / 1000) * random.normal(1, 0.01), 1.0, width=0.0196)
            for context in (64, 512)
        ]
        (row,) = extrapolate(timed, longest=1024)
        held += row.candidate_low_ms <= 1 + 1.024 <= row.candidate_high_ms
    assert 0.92 <= held / 400 <= 0.98
