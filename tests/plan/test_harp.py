"""The fast search returns what the naive one does: the whole masked dense model for every candidate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hlap_export.checkpoint import layout_of, read_layout
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import OutputError, PlanError
from hlap_export.plan.calibration import Windows
from hlap_export.plan.harp import ALPHA_GRID, default_num_layers, search_harp
from hlap_export.plan.pruning_plan import PruningPlan, Skip, TextWindows, plan_of_alphas
from tests.masked_dense import masked_logits
from tests.tiny import VOCAB_SIZE, tiny_model

# Both searches compute in float32 and differ in the order of sums (value heads repeated or masked softmax), about
# 1e-6 of the mean loss.
RELATIVE_PERPLEXITY_ERROR = 1e-5

WINDOWS = Windows(
    ids=torch.randint(1, VOCAB_SIZE, (3, 25), generator=torch.Generator().manual_seed(2)),
    text=TextWindows(name="random ids", sha256="0" * 64, num_windows=3, window_length=25),
)


def naive_perplexity(model: Any, plan: PruningPlan) -> float:
    logits = masked_logits(model, plan, WINDOWS.inputs).double()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), WINDOWS.targets.flatten()).exp())


def naive_search(model: Any, layout: ModelLayout, num_layers: int) -> tuple[dict[int, float], list[list[float]]]:
    alphas: dict[int, float] = {}
    curves: list[list[float]] = []
    for layer in reversed(range(layout.num_layers - num_layers, layout.num_layers)):
        candidates = [plan_of_alphas(layout, alphas | {layer: alpha}, method="naive") for alpha in ALPHA_GRID]
        curves.append([naive_perplexity(model, candidate) for candidate in candidates])
        alphas[layer] = ALPHA_GRID[curves[-1].index(min(curves[-1]))]
    return alphas, curves


def saved(folder: Path, model_type: str, change: Callable[[Any], None] = lambda model: None) -> tuple[Path, Any]:
    """A tiny checkpoint, and the model in eager attention."""
    model = tiny_model(model_type)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder / "dense")
    model.set_attn_implementation("eager")
    return folder / "dense", model


def fast_search(checkpoint: Path, num_layers: int, *, work: str = "work", **rest: Any) -> PruningPlan:
    return search_harp(checkpoint, WINDOWS, num_layers=num_layers, work=checkpoint.parent / work, **rest)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "gemma2", "qwen3"])
def test_fast_search_returns_what_the_naive_search_returns(model_type: str, tmp_path: Path) -> None:
    checkpoint, model = saved(tmp_path, model_type)
    alphas, curves = naive_search(model, read_layout(checkpoint), 3)
    plan = fast_search(checkpoint, 3)
    assert plan.alphas == alphas
    assert plan.search is not None
    for search, curve in zip(plan.search.layers, curves, strict=True):
        assert [score.perplexity for score in search.curve] == pytest.approx(curve, rel=RELATIVE_PERPLEXITY_ERROR)


def test_the_record_holds_the_perplexities_of_the_obvious_alternatives(tmp_path: Path) -> None:
    checkpoint, model = saved(tmp_path, "gemma2")
    plan = fast_search(checkpoint, 2)
    assert plan.search is not None
    expected = {
        "perplexity_dense": {},
        "perplexity_all_ones": {2: 1.0, 3: 1.0},
        "perplexity_all_dropped": {2: 0.0, 3: 0.0},
        "perplexity_planned": plan.alphas,
    }
    for name, alphas in expected.items():
        naive = naive_perplexity(model, plan_of_alphas(read_layout(checkpoint), alphas, method="naive"))
        assert getattr(plan.search, name) == pytest.approx(naive, rel=RELATIVE_PERPLEXITY_ERROR)


def test_ties_go_to_the_smaller_alpha_which_removes_the_block(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, "llama", lambda model: model.model.layers[3].self_attn.o_proj.weight.zero_())
    assert isinstance(fast_search(checkpoint, 1).attention[3], Skip)


def test_the_search_is_deterministic(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, "qwen3")
    assert fast_search(checkpoint, 2, work="a").to_json() == fast_search(checkpoint, 2, work="b").to_json()


def test_progress_counts_each_window_in_each_layer_and_ends_at_the_total(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, "llama")
    seen: list[tuple[int, int]] = []
    fast_search(checkpoint, 2, on_progress=lambda done, total: seen.append((done, total)))
    # Dense: 4 layers and the head. Layer 3: itself and the head, 11 times. Layer 2: one more. Two alternatives.
    total = 3 * (5 + 11 * 2 + 11 * 3 + 2 * 3)
    assert seen[:2] == [(0, total), (3, total)]
    assert seen[-1] == (total, total)
    assert seen == sorted(seen)


@pytest.mark.parametrize("num_layers", [0, 4, 9])
def test_layer_0_is_never_searched(num_layers: int, tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, "llama")
    with pytest.raises(PlanError, match="1 to 3 layers"):
        fast_search(checkpoint, num_layers)
    assert not (tmp_path / "work").exists()


def test_a_folder_with_other_files_is_not_taken_for_a_search(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, "llama")
    with pytest.raises(OutputError, match="new or empty folder"):
        fast_search(checkpoint, 1, work="dense")


def test_a_quarter_of_the_layers_is_the_default() -> None:
    for layers, expected in ((32, 8), (12, 3), (4, 1), (2, 1)):
        layout = layout_of(tiny_model("llama", num_hidden_layers=2).config.to_dict() | {"num_hidden_layers": layers})
        assert default_num_layers(layout) == expected
