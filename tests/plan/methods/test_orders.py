"""Each order of parts is that of a naive implementation, which runs the whole Hugging Face model every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hlap_export.errors import PlanError
from hlap_export.plan.layer_plan import Keep, Linear, RefitAttention, RefitMlp, Skip, linear_of
from hlap_export.plan.methods import method_of
from hlap_export.plan.methods.attention_drop import attention_drop
from hlap_export.plan.methods.base import Part, Stepwise, drop, parts, replace_by
from hlap_export.plan.methods.block_drop import block_drop
from hlap_export.plan.methods.harp import Harp
from hlap_export.plan.methods.mlp_drop import mlp_drop
from hlap_export.plan.methods.orders import by_cosine, by_loss, by_unexplained, greedily
from hlap_export.plan.methods.suffix_fit import suffix_fit
from hlap_export.plan.pruning_plan import PruningPlan, plan_of_alphas
from tests.plan.methods.benches import FITTED_ON, naive_loss, open_bench, save_eager


def removed(method: Stepwise, bench: Any) -> list[str]:
    return [step.what for step in method.walk(bench)]


def naive_streams(model: Any) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    """What enters each layer, what is between its halves, and what leaves it."""
    entering: list[torch.Tensor] = []
    leaving: list[torch.Tensor] = []
    between: list[torch.Tensor] = []
    hooks = []
    for layer in model.model.layers:
        norm = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
        hooks += [
            layer.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0])),
            layer.register_forward_hook(lambda _, inputs, output: leaving.append(output)),
            norm.register_forward_pre_hook(lambda _, inputs: between.append(inputs[0])),
        ]
    with torch.no_grad():
        model(input_ids=FITTED_ON.inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return entering, between, leaving


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    dot = (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    return float(dot.mean())


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_attention_mlps_and_blocks_are_dropped_in_the_order_of_their_cosines(model_type: str, tmp_path: Path) -> None:
    checkpoint, model = save_eager(tmp_path, model_type)
    entering, between, leaving = naive_streams(model)
    bench = open_bench(checkpoint)
    for method, name, before, after in (
        (attention_drop, "attention", entering, between),
        (mlp_drop, "mlp", between, leaving),
        (block_drop, "block", entering, leaving),
    ):
        naive = sorted((1, 2, 3), key=lambda layer: -cosine(before[layer], after[layer]))
        assert removed(method(by_cosine), bench) == [f"{name} {layer}" for layer in naive]


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
@pytest.mark.parametrize("name", ["attention-drop", "mlp-drop", "block-drop"])
def test_what_is_dropped_can_be_chosen_by_its_loss_as_well(name: Any, model_type: str, tmp_path: Path) -> None:
    checkpoint, model = save_eager(tmp_path, model_type)
    bench, of = open_bench(checkpoint), name.removesuffix("-drop")
    naive = {layer: naive_loss(model, drop(bench.dense, Part(layer=layer, of=of))) for layer in (1, 2, 3)}
    expected = [f"{of} {layer}" for layer in sorted(naive, key=lambda layer: naive[layer])]
    method = method_of(name, linear_of("full", bench.layout), "loss")
    assert [step.what for step in method.walk(bench)] == expected
    first_greedy = next(method_of(name, linear_of("full", bench.layout), "greedy").walk(bench))
    assert first_greedy.what == expected[0]
    last = list(method.walk(bench))[-1]
    assert bench.loss(last.plan) == pytest.approx(naive_loss(model, last.plan), rel=1e-5)


def test_what_is_dropped_cannot_be_chosen_by_what_a_map_leaves_unexplained(tmp_path: Path) -> None:
    layout = open_bench(save_eager(tmp_path, "llama")[0]).layout
    with pytest.raises(PlanError, match="method mlp-drop, choose_by: expected cosine, loss or greedy"):
        method_of("mlp-drop", linear_of("full", layout), "unexplained")


def test_a_dropped_block_loses_both_halves() -> None:
    from hlap_export.checkpoint import layout_of
    from hlap_export.plan.pruning_plan import dense_plan
    from tests.tiny import tiny_model

    dense = dense_plan(layout_of(tiny_model("llama").config.to_dict()))
    block = drop(drop(dense, Part(layer=2, of="block")), Part(layer=1, of="mlp"))
    assert isinstance(block.attention[2], Skip)
    assert sorted(block.mlp) == [1, 2]
    assert dense.mlp == {}


def naive_greedy(model: Any, dense: PruningPlan, names: Sequence[Part], count: int) -> list[str]:
    """Every part that is left, measured anew beside what has gone."""
    gone: dict[int, float] = {}
    for _ in range(count):
        plans = {part.layer: gone | {part.layer: 0.0} for part in names if part.layer not in gone}
        losses = {layer: naive_loss(model, dense_with(dense, alphas)) for layer, alphas in plans.items()}
        gone[min(losses, key=lambda layer: losses[layer])] = 0.0
    return [f"attention {layer}" for layer in gone]


def dense_with(dense: PruningPlan, alphas: dict[int, float]) -> PruningPlan:
    attention = [Skip() if index in alphas else kept for index, kept in enumerate(dense.attention)]
    return dense.model_copy(update={"attention": tuple(attention)})


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2"])
def test_the_one_shot_loss_is_that_of_each_layer_removed_alone(model_type: str, tmp_path: Path) -> None:
    checkpoint, model = save_eager(tmp_path, model_type)
    bench = open_bench(checkpoint)
    naive = {layer: naive_loss(model, dense_with(bench.dense, {layer: 0.0})) for layer in (1, 2, 3)}
    method = Stepwise(of="attention", remove=drop, order=by_loss)
    assert removed(method, bench) == [f"attention {layer}" for layer in sorted(naive, key=lambda layer: naive[layer])]
    for layer, loss in naive.items():
        assert bench.loss(dense_with(bench.dense, {layer: 0.0})) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
def test_the_first_greedy_choice_is_the_best_of_all_and_later_ones_are_measured_beside_it(
    model_type: str, tmp_path: Path
) -> None:
    checkpoint, model = save_eager(tmp_path, model_type)
    bench = open_bench(checkpoint)
    found = removed(Stepwise(of="attention", remove=drop, order=greedily), bench)
    naive = naive_greedy(model, bench.dense, parts(bench.layout, "attention"), 1)
    assert found[0] == naive[0]
    assert sorted(found) == ["attention 1", "attention 2", "attention 3"]


class Costs:
    """A bench whose losses are a table: what is removed -> loss; counts what is asked."""

    def __init__(self, dense: PruningPlan, alone: dict[int, float], together: dict[tuple[int, int], float]) -> None:
        self.dense, self.asked, self._alone, self._together = dense, list[tuple[int, ...]](), alone, together

    def loss(self, plan: PruningPlan) -> float:
        gone = tuple(index for index, attention in enumerate(plan.attention) if isinstance(attention, Skip))
        if gone and gone not in self.asked:
            self.asked.append(gone)
        pairs = [pair for pair in self._together if set(pair) <= set(gone)]
        return sum(self._alone[layer] for layer in gone) + sum(self._together[pair] for pair in pairs)


def test_greedy_finds_what_measuring_everything_finds_and_measures_less(tmp_path: Path) -> None:
    checkpoint, _ = save_eager(tmp_path, "llama")
    dense = open_bench(checkpoint).dense
    # Alone, 1 and 2 are the cheapest; together they are dear, so that 3 goes second.
    costs = Costs(dense, {1: 1.0, 2: 1.5, 3: 2.0}, {(1, 2): 5.0, (1, 3): 0.1, (2, 3): 0.1})
    steps = [part.layer for part in greedily(costs, [Part(layer=n, of="attention") for n in (1, 2, 3)], drop)]  # type: ignore[arg-type]
    assert steps == [1, 3, 2]
    costs = Costs(dense, {1: 1.0, 2: 1.5, 3: 9.0}, {(1, 2): 0.1, (1, 3): 0.1, (2, 3): 0.1})
    first_two = greedily(costs, [Part(layer=n, of="attention") for n in (1, 2, 3)], drop)  # type: ignore[arg-type]
    assert [next(first_two).layer, next(first_two).layer] == [1, 2]
    assert (1, 3) not in costs.asked


def test_the_unexplained_share_is_that_of_least_squares_on_the_dense_model(tmp_path: Path) -> None:
    checkpoint, model = save_eager(tmp_path, "llama")
    bench = open_bench(checkpoint)
    entering, between, _ = naive_streams(model)
    is_held_back = torch.arange(len(FITTED_ON.ids)) % 4 == 3
    shares: dict[int, float] = {}
    for layer in (1, 2, 3):
        x = model.model.layers[layer].input_layernorm(entering[layer]).detach().double()
        y = (between[layer] - entering[layer]).double()
        x = torch.cat([x, torch.ones_like(x[..., :1])], dim=-1)
        w = torch.linalg.lstsq(x[~is_held_back].flatten(0, 1), y[~is_held_back].flatten(0, 1)).solution
        rest = y[is_held_back].flatten(0, 1)
        error = (rest - x[is_held_back].flatten(0, 1) @ w).square().sum()
        shares[layer] = float(error / (rest - rest.mean(0)).square().sum())
    found = bench.unexplained([1, 2, 3], "full")
    # The ridge is chosen to be at least as good as none.
    assert all(found[layer] <= shares[layer] * 1.001 for layer in shares)
    assert all(found[layer] > 0.3 * shares[layer] for layer in shares)
    method = Stepwise(of="attention", remove=replace_by(linear_of("full", bench.layout)), order=by_unexplained)
    assert removed(method, bench) == [f"attention {layer}" for layer in sorted(found, key=lambda layer: found[layer])]


def test_the_suffix_goes_from_the_last_layer_down_as_linear_maps(tmp_path: Path) -> None:
    checkpoint, _ = save_eager(tmp_path, "llama")
    bench = open_bench(checkpoint)
    steps = list(suffix_fit(linear_of("full", bench.layout), "none").walk(bench))
    assert [step.what for step in steps] == ["attention 3", "attention 2", "attention 1"]
    assert [isinstance(attention, Linear) for attention in steps[1].plan.attention] == [False, False, True, True]


@pytest.mark.parametrize(
    ("refit", "attention", "mlps"),
    [
        ("none", Keep, []),
        ("attention", RefitAttention, []),
        ("mlp", Keep, [1, 2, 3]),
        ("both", RefitAttention, [1, 2, 3]),
    ],
)
def test_what_stays_above_the_first_map_is_fitted_anew_as_asked(
    refit: Any, attention: type, mlps: list[int], tmp_path: Path
) -> None:
    bench = open_bench(save_eager(tmp_path, "llama")[0])
    order = Stepwise(of="attention", remove=replace_by(linear_of("full", bench.layout)), order=lambda *_: iter(FIRST))
    (step,) = replace(order, refit=refit).walk(bench)
    assert [type(part) for part in step.plan.attention] == [Keep, Linear, attention, attention]
    assert list(step.plan.mlp) == mlps
    assert all(isinstance(part, RefitMlp) for part in step.plan.mlp.values())


FIRST = [Part(layer=1, of="attention")]


def test_harps_steps_are_those_of_its_search(tmp_path: Path) -> None:
    from hlap_export.plan.harp import search_harp

    checkpoint, _ = save_eager(tmp_path, "qwen3")
    steps = Harp().walk(open_bench(checkpoint))
    taken = [next(steps), next(steps)]
    plan = search_harp(checkpoint, FITTED_ON, num_layers=2, work=tmp_path / "harp")
    assert taken[1].plan.alphas == plan.alphas
    assert plan.search is not None
    assert tuple(step.search for step in taken) == plan.search.layers
    assert taken[0].plan.alphas == plan_of_alphas(open_bench(checkpoint).layout, {3: plan.alphas[3]}, method="x").alphas
