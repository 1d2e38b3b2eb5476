"""The fast search returns what the naive one does: the whole masked dense model for every candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hlap_export.checkpoint import layout_of
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.plan.harp import ALPHA_GRID, default_num_layers, search_harp
from hlap_export.plan.pruning_plan import PruningPlan, Skip, TextWindows, plan_of_alphas
from tests.masked_dense import masked_logits
from tests.tiny import VOCAB_SIZE, tiny_model

# Both searches compute in float32 and differ in the order of sums (value heads repeated or masked softmax), about
# 1e-6 of the mean loss.
RELATIVE_PERPLEXITY_ERROR = 1e-5

TEXT = TextWindows(name="random ids", sha256="0" * 64, num_windows=3, window_length=25)
WINDOWS = torch.randint(1, VOCAB_SIZE, (3, 25), generator=torch.Generator().manual_seed(2))


def naive_perplexity(model: Any, plan: PruningPlan) -> float:
    logits = masked_logits(model, plan, WINDOWS[:, :-1]).double()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), WINDOWS[:, 1:].flatten()).exp())


def naive_search(model: Any, layout: ModelLayout, num_layers: int) -> tuple[dict[int, float], list[list[float]]]:
    alphas: dict[int, float] = {}
    curves: list[list[float]] = []
    for layer in reversed(range(layout.num_layers - num_layers, layout.num_layers)):
        candidates = [plan_of_alphas(layout, alphas | {layer: alpha}, method="naive") for alpha in ALPHA_GRID]
        curves.append([naive_perplexity(model, candidate) for candidate in candidates])
        alphas[layer] = ALPHA_GRID[curves[-1].index(min(curves[-1]))]
    return alphas, curves


def fast_search(model: Any, layout: ModelLayout, num_layers: int) -> PruningPlan:
    return search_harp(model, layout, WINDOWS, text=TEXT, num_layers=num_layers)


def eager_model_and_layout(model_type: str) -> tuple[Any, ModelLayout]:
    model = tiny_model(model_type)
    model.set_attn_implementation("eager")
    return model, layout_of(model.config.to_dict())


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gemma2", "qwen3"])
def test_fast_search_returns_what_the_naive_search_returns(model_type: str) -> None:
    model, layout = eager_model_and_layout(model_type)
    alphas, curves = naive_search(model, layout, 3)
    plan = fast_search(model, layout, 3)
    assert plan.alphas == alphas
    assert plan.search is not None
    for search, curve in zip(plan.search.layers, curves, strict=True):
        assert [score.perplexity for score in search.curve] == pytest.approx(curve, rel=RELATIVE_PERPLEXITY_ERROR)


def test_the_record_holds_the_perplexities_of_the_obvious_alternatives() -> None:
    model, layout = eager_model_and_layout("gemma2")
    record = fast_search(model, layout, 2).search
    assert record is not None
    expected = {
        "perplexity_dense": {},
        "perplexity_all_ones": {2: 1.0, 3: 1.0},
        "perplexity_all_dropped": {2: 0.0, 3: 0.0},
        "perplexity_planned": fast_search(model, layout, 2).alphas,
    }
    for name, alphas in expected.items():
        naive = naive_perplexity(model, plan_of_alphas(layout, alphas, method="naive"))
        assert getattr(record, name) == pytest.approx(naive, rel=RELATIVE_PERPLEXITY_ERROR)


def test_ties_go_to_the_smaller_alpha_which_removes_the_block() -> None:
    model, layout = eager_model_and_layout("llama")
    with torch.no_grad():
        model.model.layers[3].self_attn.o_proj.weight.zero_()  # alpha changes nothing there
    assert isinstance(fast_search(model, layout, 1).attention[3], Skip)


def test_the_search_is_deterministic() -> None:
    model, layout = eager_model_and_layout("qwen3")
    assert fast_search(model, layout, 2).to_json() == fast_search(model, layout, 2).to_json()


def test_progress_counts_every_window_once_for_the_dense_run_and_once_per_layer() -> None:
    model, layout = eager_model_and_layout("llama")
    seen: list[tuple[int, int]] = []
    search_harp(
        model, layout, WINDOWS, text=TEXT, num_layers=2, on_progress=lambda done, total: seen.append((done, total))
    )
    total = 3 * len(WINDOWS)
    assert seen == [(len(WINDOWS), total), (2 * len(WINDOWS), total), (total, total)]


@pytest.mark.parametrize("num_layers", [0, 4, 9])
def test_layer_0_is_never_searched(num_layers: int) -> None:
    model, layout = eager_model_and_layout("llama")
    with pytest.raises(PlanError, match="1 to 3 layers"):
        fast_search(model, layout, num_layers)


def test_a_quarter_of_the_layers_is_the_default(tmp_path: Path) -> None:
    for layers, expected in ((32, 8), (12, 3), (4, 1), (2, 1)):
        layout = layout_of(tiny_model("llama", num_hidden_layers=2).config.to_dict() | {"num_hidden_layers": layers})
        assert default_num_layers(layout) == expected
