"""The lengths at which a point is timed."""

from __future__ import annotations

import pytest

from benchmarks.ort.models import lengths_of
from hlap_export.bench.work import Point


@pytest.mark.parametrize(
    ("context", "expected"),
    [(4095, (4095, 3839, 3583, 3327)), (512, (512, 448, 384, 320)), (16384, (16384, 16128, 15872, 15616))],
)
def test_a_decode_step_is_timed_at_contexts_up_to_the_one_that_is_named(
    context: int, expected: tuple[int, ...]
) -> None:
    assert lengths_of(Point(phase="decode", num_tokens=context)) == expected


def test_a_prompt_is_timed_at_its_length() -> None:
    assert lengths_of(Point(phase="prefill", num_tokens=2048)) == (2048,)
