"""Plans are strict data: what is written is read back, and what can't be built can't be said."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from hlap_export.checkpoint import layout_of
from hlap_export.errors import PlanError
from hlap_export.plan.layer_plan import AttentionPlan, Refit, RefitMlp, SkipMlp
from hlap_export.plan.pruning_plan import (
    Keep,
    KeepHeads,
    PruningPlan,
    RefitAttention,
    Skip,
    ValueOnly,
    load_plan,
    plan_of_alphas,
    refit_kept,
    validate_plan,
)
from tests.plans import ATTENTION, tiny_plan
from tests.tiny import tiny_model

LAYOUT = layout_of(tiny_model("llama").config.to_dict())


@pytest.mark.parametrize("name", ATTENTION)
def test_a_saved_plan_is_read_back_equal(name: str, tmp_path: Path) -> None:
    plan = tiny_plan(name, LAYOUT)
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == plan


def test_alpha_0_is_skip_and_layers_count_from_the_embedding() -> None:
    plan = plan_of_alphas(LAYOUT, {3: 0.0, 1: 0.4}, method="fixed")
    assert plan.attention == (Keep(), ValueOnly(alpha=0.4), Keep(), Skip())
    assert plan.alphas == {1: 0.4, 3: 0.0}


@pytest.mark.parametrize("alpha", [math.nan, -0.1, 1.01, math.inf])
def test_alphas_outside_0_to_1_are_refused_with_the_range(alpha: float) -> None:
    with pytest.raises(PlanError, match=r"layer 2: expected alpha in \[0, 1\]"):
        plan_of_alphas(LAYOUT, {2: alpha}, method="fixed")


@pytest.mark.parametrize("layer", [-1, 4, 99])
def test_layers_that_the_model_has_not_are_refused(layer: int) -> None:
    with pytest.raises(PlanError, match=f"layer {layer}: expected a layer from 1 to 3"):
        plan_of_alphas(LAYOUT, {layer: 0.5}, method="fixed")


def test_removing_every_layers_attention_is_refused_with_the_reason() -> None:
    with pytest.raises(PlanError, match="removes it from every layer"):
        plan_of_alphas(LAYOUT, dict.fromkeys(range(4), 0.5), method="fixed")


def _edited(tmp_path: Path, **changes: object) -> Path:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(tiny_plan("suffix", LAYOUT).to_json()) | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attenton": []}, "attenton"),
        ({"format": "hlap-export/plan/9"}, "format"),
        ({"attention": [{"kind": "value_only", "alpha": 0}]}, r"attention\.0\.value_only\.alpha"),
        ({"attention": [{"kind": "value_only", "alpha": "NaN"}]}, "alpha"),
        ({"attention": [{"kind": "keep_heads", "query_heads": [2, 1]}]}, "ascending"),
        ({"attention": [{"kind": "keep_heads", "query_heads": []}]}, "query_heads"),
        ({"attention": [{"kind": "drop"}]}, "drop"),
    ],
)
def test_a_malformed_plan_names_the_entry(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=message):
        load_plan(_edited(tmp_path, **changes))


def test_a_file_that_is_not_json_or_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="Invalid JSON"):
        load_plan(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="no such file"):
        load_plan(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ((0, 1, 3), "group 0 keeps 2, group 1 keeps 1"),
        ((0, 6), "heads from 0 to 5, found head 6"),
    ],
)
def test_kept_heads_must_leave_grouped_query_attention(heads: tuple[int, ...], message: str) -> None:
    plan = tiny_plan("dense", LAYOUT)
    broken = plan.model_copy(update={"attention": (*plan.attention[:3], KeepHeads(query_heads=heads))})
    with pytest.raises(PlanError, match=message):
        validate_plan(broken, LAYOUT)


@pytest.mark.parametrize(
    ("refit", "attention", "mlps"),
    [
        ("attention", RefitAttention(), ()),
        ("mlp", Keep(), (1, 2)),
        ("both", RefitAttention(), (1, 2)),
        ("none", Keep(), ()),
    ],
)
def test_refitting_what_stays_leaves_changed_parts_and_layers_below_them_alone(
    refit: Refit, attention: AttentionPlan, mlps: tuple[int, ...]
) -> None:
    changed = {"attention": (Keep(), Skip(), Keep(), ValueOnly(alpha=0.3)), "mlp": {3: SkipMlp()}}
    plan = tiny_plan("dense", LAYOUT).model_copy(update=changed)
    refitted = refit_kept(plan, refit)
    assert refitted.attention == (Keep(), Skip(), attention, ValueOnly(alpha=0.3))
    assert refitted.mlp == {**dict.fromkeys(mlps, RefitMlp()), 3: SkipMlp()}
    assert (refitted.first_changed, refitted.fits, refit_kept(refitted, refit)) == (1, refit != "none", refitted)


def test_a_plan_must_name_every_layer() -> None:
    plan = tiny_plan("dense", LAYOUT)
    with pytest.raises(PlanError, match="found 3 entries"):
        validate_plan(PruningPlan(method="x", model=plan.model, attention=plan.attention[:3]), LAYOUT)
