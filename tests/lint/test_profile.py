"""Profiles against a graph's inputs: what the builder would take without a word."""

from __future__ import annotations

import pytest

from hlap_export.errors import RecipeError
from hlap_export.lint.profile_rules import Dims, Shapes, parse_profile, profile_problems

INPUTS: dict[str, Dims] = {
    "input_ids": ("batch", "sequence"),
    "attention_mask": ("batch", "past + sequence"),
    "past": ("batch", 2, "past", 64),
    "angles": (128, 8),
}
RIGHT = {
    "input_ids": "1x1:1x16:4x128",
    "attention_mask": "1x1:1x80:4x1152",
    "past": "1x2x0x64:1x2x64x64:4x2x1024x64",
}


def problems(**changed: str | None) -> list[tuple[str, str, str]]:
    texts = [f"{name}={sizes}" for name, sizes in (RIGHT | changed).items() if sizes is not None]
    return list(profile_problems(INPUTS, parse_profile(texts)))


def test_a_profile_that_fits_is_left_alone() -> None:
    assert problems() == []


@pytest.mark.parametrize(
    ("changed", "rule", "where", "says"),
    [
        ({"input_id": "1x1"}, "profile-unknown-input", "input_id", "did you mean input_ids?"),
        ({"past": None}, "profile-missing-input", "past", "no sizes for [batch, 2, past, 64]"),
        ({"input_ids": "1:16:128"}, "profile-rank", "input_ids", "1 sizes for [batch, sequence]"),
        ({"input_ids": "1x1:1x16:4x8"}, "profile-order", "input_ids", "1, 16, 8 for dimension 1"),
        ({"angles": "128x4:128x8:128x8"}, "profile-static-dimension", "angles", "4 to 8 for dimension 1, which is 8"),
        ({"input_ids": "1x1:1x16:8x128"}, "profile-tied-dimension", "attention_mask", "batch is 1..1..4, in input_ids"),
        (
            {"attention_mask": "1x1:1x80:4x1024"},
            "profile-tied-dimension",
            "attention_mask",
            "past + sequence is 1..80..1024, not 1..80..1152",
        ),
    ],
)
def test_each_mistake_is_told_with_its_input(changed: dict[str, str], rule: str, where: str, says: str) -> None:
    found = [problem for problem in problems(**changed) if problem[1] == where]
    assert [problem[0] for problem in found] == [rule]
    assert says in found[0][2]


def test_one_size_alone_stands_for_all_three() -> None:
    assert parse_profile(["past=1x2x0x64"]) == {"past": Shapes(min=(1, 2, 0, 64), opt=(1, 2, 0, 64), max=(1, 2, 0, 64))}


@pytest.mark.parametrize("text", ["input_ids", "=1x1", "input_ids=1x1:1x2", "input_ids=1xT", "input_ids=1x1:1:1x1"])
def test_sizes_that_can_t_be_read_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(RecipeError, match="input_ids=1x1:1x64:1x128"):
        parse_profile([text])
