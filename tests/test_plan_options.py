"""From flags and recipes to what the methods are asked for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from hlap_export import cli
from hlap_export.errors import RecipeError
from hlap_export.plan.targets import Targets
from hlap_export.recipe import parse_percent, parse_recipe


@pytest.mark.parametrize(("text", "value"), [("3%", 0.03), ("0.03", 0.03), (" 2.5 % ", 0.025)])
def test_a_percentage_is_read_with_and_without_its_sign(text: str, value: float) -> None:
    assert parse_percent(text, where="--x") == pytest.approx(value)


def test_a_word_is_no_percentage() -> None:
    with pytest.raises(RecipeError, match="--x: expected a percentage, found 'much'"):
        parse_percent("much", where="--x")


def test_a_share_of_one_and_more_needs_its_sign() -> None:
    with pytest.raises(RecipeError, match=r"below 1, found '3'\. Fix: write 3%, or 300% if that is meant"):
        parse_percent("3", where="--x")
    assert parse_percent("300%", where="--x") == 3


def test_a_recipes_targets_reach_the_methods(tmp_path: Path) -> None:
    text = "plan: {method: choose-fit, max_perplexity_increase: 0.03, target_kv_ratio: 0.6, choose_by: loss, rank: 8,"
    text += " refit: both}"
    options = parse_recipe(text).plan.method_options(tmp_path / "plan.safetensors")
    assert options.targets == Targets(max_perplexity_increase=0.03, kv_ratio=0.6)
    assert (options.choose_by, options.form, options.rank) == ("loss", "low_rank", 8)
    assert (options.refit, options.follow_residual) == ("both", True)
    assert options.weights == tmp_path / "plan.safetensors"


def test_flags_win_over_the_recipe_and_fitted_weights_lie_beside_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    class AskedError(Exception):
        pass

    def plan(model: Path, **arguments: Any) -> None:
        asked.update(arguments)
        raise AskedError

    monkeypatch.setattr(importlib.import_module("hlap_export.plan"), "plan", plan)
    (tmp_path / "recipe.yaml").write_text("plan: {method: harp, target_kv_ratio: 0.6, windows: 4, window_length: 32}")
    arguments = ["--recipe", str(tmp_path / "recipe.yaml"), "--method", "choose-fit", "--max-weights", "12GiB"]
    with pytest.raises(AskedError):
        cli.app(
            ["plan", "--out", str(tmp_path / "plan.json"), *arguments, "--target-latency-ratio", "0.85"],
            standalone_mode=False,
        )
    assert asked["method"] == "choose-fit"
    assert asked["options"].targets == Targets(latency_ratio=0.85, kv_ratio=0.6, max_weight_bytes=12 * 2**30)
    assert asked["options"].weights == tmp_path / "plan.safetensors"
    assert asked["calibration"].windows == 4
