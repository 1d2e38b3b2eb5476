"""Parameter and KV counts reproduce the paper's four models, from their configs alone."""

from __future__ import annotations

from typing import Any

import pytest

from hlap_export.checkpoint import layout_of
from hlap_export.plan.accounting import ParameterCount, count_parameters
from hlap_export.plan.pruning_plan import plan_of_alphas
from tests.plans import ATTENTION, FITTED, save_tiny_fitted, tiny_plan
from tests.tiny import tiny_model

LLAMA_3_1_8B = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
}
MISTRAL_7B = LLAMA_3_1_8B | {"model_type": "mistral", "vocab_size": 32768, "sliding_window": None}
QWEN2_7B = {
    "model_type": "qwen2",
    "num_hidden_layers": 28,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
}
GEMMA2_9B = {
    "model_type": "gemma2",
    "num_hidden_layers": 42,
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 256,
    "vocab_size": 256000,
}
# The alphas that the paper's authors released, last layer first.
RELEASED = [
    (LLAMA_3_1_8B, [0.8, 0.2, 0.1, 0.1, 0, 0.1, 0, 0], 6.9793e9, 3.305, 25.0),
    (MISTRAL_7B, [0.7, 0.2, 0.2, 0.2, 0, 0, 0, 0], 6.9793e9, 3.606, 25.0),
    (QWEN2_7B, [0.9, 0.3, 0.3, 0.2], 6.5254e9, 0.900, 14.29),
    (GEMMA2_9B, [0.5, 0.4, 0.3, 0.4, 0.5, 0.4], 8.3236e9, 1.587, 14.29),
]


def count(config: dict[str, Any], last_first: list[float]) -> ParameterCount:
    layout = layout_of(config)
    alphas = {layout.num_layers - 1 - depth: alpha for depth, alpha in enumerate(last_first)}
    return count_parameters(layout, plan_of_alphas(layout, alphas, method="released"))


@pytest.mark.parametrize(("config", "alphas", "base", "removed_percent", "kv_percent"), RELEASED)
def test_released_plans_remove_what_the_paper_counts(
    config: dict[str, Any], alphas: list[float], base: float, removed_percent: float, kv_percent: float
) -> None:
    counted = count(config, alphas)
    assert counted.base == pytest.approx(base, rel=1e-4)
    assert round(100 * counted.removed_ratio, 3) == removed_percent
    assert round(100 * counted.kv_removed_ratio, 2) == kv_percent


def test_folding_saves_the_repeated_heads_of_o_proj_on_top() -> None:
    counted = count(LLAMA_3_1_8B, RELEASED[0][1])
    # 5 value-only layers: o_proj shrinks from 4096 x 4096 to 1024 x 4096.
    assert counted.removed_folded - counted.removed == 5 * 4096 * (4096 - 1024)


@pytest.mark.parametrize("plan_name", [*ATTENTION, *FITTED])
def test_counts_equal_the_tensors_of_the_pruned_model(plan_name: str, tmp_path: Any) -> None:
    from hlap_export.checkpoint import load_model, read_layout
    from hlap_export.prune import prune
    from tests.tiny import save_tiny

    def linear_weights(model: Any) -> int:
        return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2)

    import torch

    dense = save_tiny(tmp_path / "dense", "qwen3")
    plan = tiny_plan(plan_name, read_layout(dense))
    if plan.fits:
        plan = save_tiny_fitted(plan, read_layout(dense), tmp_path / "plan.safetensors")
    prune(dense, plan, tmp_path / "pruned", fitted=tmp_path / "plan.safetensors")
    counted = count_parameters(read_layout(dense), plan)
    before = linear_weights(load_model(dense, dtype=torch.float32))
    after = linear_weights(load_model(tmp_path / "pruned", dtype=torch.float32))
    assert (counted.base, counted.base - counted.removed_folded) == (before, after)
    cached = sum(layer.num_kv_heads for layer in read_layout(tmp_path / "pruned").cached_layers)
    assert counted.kv_heads - counted.kv_heads_removed == cached


def test_a_tiny_models_counts_need_no_weights() -> None:
    layout = layout_of(tiny_model("llama").config.to_dict())
    assert count_parameters(layout, tiny_plan("dense", layout)).removed == 0
