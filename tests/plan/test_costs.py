"""Counted costs against sums written out by hand, and against the shapes of a pruned checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from hlap_export.checkpoint import layout_of, read_layout
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.costs import cost_of, planned_layout
from hlap_export.plan.layer_plan import Keep, SkipMlp, ValueOnly, linear_of
from hlap_export.plan.pruning_plan import ModelIdentity, PruningPlan
from hlap_export.prune import prune
from tests.plans import ATTENTION, tiny_plan
from tests.tiny import save_tiny, tiny_model

# The tiny models: D 48, F 80, H 6, K 2, E 16, V 96, 4 layers, 128 positions.
QO, KV, MLP, HEAD = 2 * 48 * 6 * 16, 2 * 48 * 2 * 16, 3 * 48 * 80, 96 * 48
PAIRS_128 = 128 * 129 // 2


def layout(model_type: str) -> ModelLayout:
    return layout_of(tiny_model(model_type).config.to_dict())


def plan_of(name: str, of: ModelLayout) -> PruningPlan:
    return tiny_plan(name, of)


def test_a_decode_step_reads_each_weight_and_the_whole_cache() -> None:
    dense = cost_of(layout("llama"), "float32")
    assert dense.decode_values == 4 * (QO + KV + MLP) + HEAD + 4 * 2 * 2 * 16 * 128


def test_a_prefill_computes_what_follows_the_last_attention_for_one_token() -> None:
    of = layout("llama")
    last = QO // 2 + MLP + HEAD  # o_proj of the last attention, its MLP and the head
    everything = 4 * (QO + KV + MLP) + HEAD
    scores = 4 * 2 * 6 * 16 * PAIRS_128
    assert cost_of(of, "float32").prefill_products == 128 * (everything - last) + last + scores
    suffix = planned_layout(of, plan_of("suffix", of))  # layers 2 and 3 don't attend: 1 is the last that does
    above = QO // 2 + MLP + MLP + (KV + MLP) + HEAD
    below = 2 * (QO + KV + MLP) - QO // 2 - MLP
    assert cost_of(suffix, "float32").prefill_products == 128 * below + above + 2 * 2 * 6 * 16 * PAIRS_128


def test_a_sliding_window_bounds_the_pairs_and_the_cache() -> None:
    mistral, llama = cost_of(layout("mistral"), "float32"), cost_of(layout("llama"), "float32")
    seen = sum(min(position + 1, 7) for position in range(128))
    assert llama.prefill_products - mistral.prefill_products == 4 * 2 * 6 * 16 * (PAIRS_128 - seen)
    assert llama.decode_values - mistral.decode_values == 4 * 2 * 2 * 16 * (128 - 7)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_planned_layout_is_that_of_the_pruned_checkpoint(model_type: str, name: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", model_type)
    of = read_layout(dense)
    prune(dense, plan_of(name, of), tmp_path / "pruned")
    pruned = read_layout(tmp_path / "pruned")
    assert planned_layout(of, plan_of(name, of)).layers == pruned.layers
    assert (
        cost_of(planned_layout(of, plan_of(name, of)), "float32").weight_bytes
        == cost_of(pruned, "float32").weight_bytes
    )


def test_a_linear_map_of_harps_rank_costs_what_its_value_only_layer_costs() -> None:
    of = layout("llama")

    def cost(top: ValueOnly | Keep, rank: int | None = None) -> int:
        attention = top if rank is None else linear_of("low_rank", of, rank)
        plan = PruningPlan(method="t", model=ModelIdentity.of(of), attention=(Keep(), Keep(), Keep(), attention))
        return cost_of(planned_layout(of, plan), "float32").decode_values

    assert cost(Keep(), rank=2 * 16) == cost(ValueOnly(alpha=0.5)) < cost(Keep())


def test_a_missing_mlp_costs_nothing() -> None:
    of = layout("llama")
    plan = PruningPlan(method="t", model=ModelIdentity.of(of), attention=(Keep(),) * 4, mlp={1: SkipMlp()})
    saved = cost_of(of, "float32").decode_values - cost_of(planned_layout(of, plan), "float32").decode_values
    assert saved == MLP
