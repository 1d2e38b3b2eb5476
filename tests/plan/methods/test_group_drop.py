"""KV groups go in the order of what they add to the stream, computed naively on the Hugging Face model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hlap_export.plan.layer_plan import KeepHeads, Skip
from hlap_export.plan.methods.group_drop import GroupDrop, group_scores
from tests.plan.methods.benches import FITTED_ON, naive_loss, open_bench, save_eager


def naive_scores(model: Any) -> dict[tuple[int, int], float]:
    """Every token by itself; tiny models have 6 query heads of 16 in 2 groups."""
    scores: dict[tuple[int, int], list[float]] = {(layer, group): [] for layer in (1, 2, 3) for group in (0, 1)}
    for layer in (1, 2, 3):
        block = model.model.layers[layer]
        norm = getattr(block, "pre_feedforward_layernorm", block.post_attention_layernorm)
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            block.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(h=inputs[0])),
            norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(mid=inputs[0])),
            block.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.update(x=inputs[0])),
        ]
        with torch.no_grad():
            model(input_ids=FITTED_ON.inputs, use_cache=False)
            for h, mid, x in zip(*(seen[name].flatten(0, 1) for name in ("h", "mid", "x")), strict=True):
                heads = [
                    block.self_attn.o_proj.weight[:, 16 * n : 16 * n + 16] @ x[16 * n : 16 * n + 16] for n in range(6)
                ]
                whole = torch.stack(heads).sum(0).norm()
                for group in (0, 1):
                    share = torch.stack(heads[3 * group : 3 * group + 3]).sum(0).norm() / whole
                    scores[layer, group].append(float((mid - h).norm() / h.norm() * share))
        for hook in hooks:
            hook.remove()
    return {key: sum(values) / len(values) for key, values in scores.items()}


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_groups_go_in_the_order_of_what_they_add(model_type: str, tmp_path: Path) -> None:
    checkpoint, model = save_eager(tmp_path, model_type)
    naive, bench = naive_scores(model), open_bench(checkpoint)
    assert group_scores(bench) == pytest.approx(naive, rel=1e-4)
    steps = list(GroupDrop().walk(bench))
    order = sorted(naive, key=lambda key: naive[key])
    assert [step.what for step in steps] == [f"group {layer}.{group}" for layer, group in order]
    assert all(isinstance(attention, Skip) for attention in steps[-1].plan.attention[1:])
    layer, group = order[0]
    kept = steps[0].plan.attention[layer]
    assert isinstance(kept, KeepHeads)
    assert kept.query_heads == ((0, 1, 2) if group == 1 else (3, 4, 5))
    assert bench.loss(steps[2].plan) == pytest.approx(naive_loss(model, steps[2].plan), rel=1e-5)
