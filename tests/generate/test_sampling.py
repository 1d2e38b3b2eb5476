from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from hlap_export.errors import RecipeError
from hlap_export.generate.sampling import Sampling, chooser

LOGITS = np.log(np.array([0.05, 0.5, 0.15, 0.3], dtype=np.float32))
DRAWS = 4000


def drawn_ratios(**options: Any) -> list[float]:
    choose = chooser(Sampling(temperature=options.pop("temperature", 1.0), **options))
    counts = Counter(choose(LOGITS) for _ in range(DRAWS))
    return [counts[token] / DRAWS for token in range(4)]


# Expected ratios by hand. Five standard deviations of a ratio of 4000 draws are 0.04 at most; the seed is fixed.
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.05, 0.5, 0.15, 0.3]),
        ({"top_k": 2}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.79}, [0, 0.625, 0, 0.375]),
        ({"top_p": 0.81}, [0, 0.5 / 0.95, 0.15 / 0.95, 0.3 / 0.95]),
        ({"temperature": 0.5}, [0.0025 / 0.365, 0.25 / 0.365, 0.0225 / 0.365, 0.09 / 0.365]),
    ],
)
def test_tokens_are_drawn_as_often_as_the_options_say(options: dict[str, Any], expected: list[float]) -> None:
    assert drawn_ratios(**options) == pytest.approx(expected, abs=0.04)
    assert [ratio > 0 for ratio in drawn_ratios(**options)] == [ratio > 0 for ratio in expected]


def test_a_seed_decides_the_draws() -> None:
    first, again, other = (chooser(Sampling(temperature=1.0, seed=seed)) for seed in (1, 1, 2))
    draws = [first(LOGITS) for _ in range(50)]
    assert draws == [again(LOGITS) for _ in range(50)]
    assert draws != [other(LOGITS) for _ in range(50)]


def test_drawing_leaves_the_program_s_own_random_numbers_alone() -> None:
    import torch

    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    chooser(Sampling(temperature=1.0))(LOGITS)
    assert torch.rand(1) == expected


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": 1.0, "top_k": -1}, "--top-k"),
        ({"temperature": 1.0, "top_p": 0.0}, "--top-p"),
        ({"temperature": 1.0, "top_p": 1.5}, "--top-p"),
        ({"top_k": 5}, "add --temperature"),
        ({"top_p": 0.5}, "add --temperature"),
    ],
)
def test_what_can_not_be_meant_is_refused(options: dict[str, Any], names: str) -> None:
    with pytest.raises(RecipeError, match=names):
        Sampling(**options)
