"""Fitted weights belong to one plan: a missing, changed or foreign side file is told apart, never pruned with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlap_export.checkpoint import layout_of
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.digests import file_sha256
from hlap_export.errors import PlanError
from hlap_export.plan.pruning_plan import Linear, PruningPlan, linear_of, load_plan, validate_plan
from hlap_export.plan.side_file import copy_side_file, open_side_file, side_file_damage, side_file_of
from hlap_export.prune import prune
from tests.plans import FITTED, save_tiny_fitted, tiny_plan
from tests.tiny import save_tiny, tiny_model

LAYOUT = layout_of(tiny_model("llama").config.to_dict())


def fitted_plan(folder: Path, name: str = "linear", layout: ModelLayout = LAYOUT) -> tuple[PruningPlan, Path]:
    path = side_file_of(folder / "plan.json")
    return save_tiny_fitted(tiny_plan(name, layout), layout, path), path


@pytest.mark.parametrize("name", FITTED)
def test_a_fitted_plan_is_read_back_equal(name: str, tmp_path: Path) -> None:
    plan, _ = fitted_plan(tmp_path, name)
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_a_side_file_that_is_missing_or_changed_is_refused(tmp_path: Path) -> None:
    plan, path = fitted_plan(tmp_path)
    dense = save_tiny(tmp_path / "dense", "llama")
    for side_file in (None, tmp_path / "nowhere.safetensors"):
        with pytest.raises(PlanError, match=r"plan\.json has plan\.safetensors"):
            prune(dense, plan, tmp_path / "out", fitted=side_file)
    weights = load_file(path)
    save_file(weights | {"fitted.1.o_proj.bias": weights["fitted.1.o_proj.bias"] + 1e-6}, path)
    with pytest.raises(PlanError, match="the file that the plan was saved with"):
        prune(dense, plan, tmp_path / "out", fitted=path)
    assert not (tmp_path / "out").exists()


def test_a_plan_whose_weights_were_never_fitted_is_refused(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    with pytest.raises(PlanError, match="never fitted"):
        prune(dense, tiny_plan("linear", LAYOUT), tmp_path / "out")


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    plan, path = fitted_plan(tmp_path)
    save_file(load_file(path) | {"fitted.2.o_proj.weight": torch.zeros(48, 47)}, path)
    assert plan.fitted is not None
    plan = plan.model_copy(update={"fitted": plan.fitted.model_copy(update={"sha256": file_sha256(path)})})
    with pytest.raises(
        PlanError, match=r"fitted\.2\.o_proj\.weight: expected shape \(48, 48\), found shape \(48, 47\)"
    ):
        open_side_file(path, plan, LAYOUT)


def test_a_copied_plan_takes_its_weights_along(tmp_path: Path) -> None:
    plan, path = fitted_plan(tmp_path)
    copy = tmp_path / "run" / "plan.safetensors"
    assert side_file_damage(copy, plan) == "its fitted weights are gone"
    copy_side_file(path, plan, copy)
    assert side_file_damage(copy, plan) is None
    copy.write_bytes(b"other")
    assert side_file_damage(copy, plan) == "its fitted weights were changed"


@pytest.mark.parametrize(
    ("attention", "message"),
    [
        (Linear(form="full", rank=47), "form full: expected 48, found 47"),
        (Linear(form="output", rank=48), "form output: expected 32, found 48"),
        (Linear(form="low_rank", rank=48), "form low_rank: expected 1 to 47, found 48"),
    ],
)
def test_a_rank_that_the_form_cant_have_is_refused(attention: Linear, message: str) -> None:
    plan = tiny_plan("dense", LAYOUT)
    broken = plan.model_copy(update={"attention": (*plan.attention[:3], attention)})
    with pytest.raises(PlanError, match=message):
        validate_plan(broken, LAYOUT)


def test_ranks_follow_from_the_form() -> None:
    assert linear_of("full", LAYOUT) == Linear(form="full", rank=48)
    assert linear_of("output", LAYOUT) == Linear(form="output", rank=32)
    assert linear_of("low_rank", LAYOUT, 5) == Linear(form="low_rank", rank=5)


def test_a_linear_layer_0_and_an_mlp_beyond_the_model_are_refused() -> None:
    plan = tiny_plan("dense", LAYOUT)
    first = plan.model_copy(update={"attention": (linear_of("full", LAYOUT), *plan.attention[1:])})
    with pytest.raises(PlanError, match="removes it from layer 0"):
        validate_plan(first, LAYOUT)
    beyond = tiny_plan("blocks", LAYOUT).model_copy(update={"mlp": {4: tiny_plan("blocks", LAYOUT).mlp[0]}})
    with pytest.raises(PlanError, match="mlp of layer 4"):
        validate_plan(beyond, LAYOUT)
