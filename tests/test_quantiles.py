from __future__ import annotations

import pytest

from hlap_export.quantiles import normal, student_t


@pytest.mark.parametrize(
    ("freedom", "level", "value"),
    [
        (1, 0.975, 12.706),
        (2, 0.975, 4.303),
        (3, 0.975, 3.182),
        (4, 0.975, 2.776),
        (4, 0.995, 4.604),
        (5, 0.999, 5.893),
        (9, 0.975, 2.262),
        (30, 0.975, 2.042),
    ],
)
def test_students_t_is_that_of_the_tables(freedom: int, level: float, value: float) -> None:
    assert student_t(freedom, level) == pytest.approx(value, abs=6e-4)


def test_students_t_becomes_the_normal_distribution() -> None:
    assert normal() == pytest.approx(1.959964, abs=1e-6)
    assert student_t(100_000) == pytest.approx(normal(), abs=1e-4)
