"""Folds are exact in float64: each equals the unfolded attention, written out here with explicit loops and repeats."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hlap_export.checkpoint import layout_of
from hlap_export.families import FAMILIES
from hlap_export.fold import layer_edits
from hlap_export.fold.attention import select_head_inputs, select_heads, sum_over_groups
from hlap_export.plan.pruning_plan import KeepHeads, ModelIdentity, PruningPlan, ValueOnly
from tests.tiny import NUM_LAYERS, tiny_model

# Design §5: folds against their unfolded form, in float64.
RELATIVE_FOLD_ERROR = 1e-12
ALPHA = 0.3
LAYER = 2


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_group_sum_equals_repeating_the_values() -> None:
    hidden, heads, kv_heads, head_dim = 10, 6, 2, 4
    w_o = torch.randn(hidden, heads * head_dim, dtype=torch.float64)
    v = torch.randn(7, kv_heads * head_dim, dtype=torch.float64)
    repeated = torch.cat([v[:, (h // 3) * head_dim : (h // 3 + 1) * head_dim] for h in range(heads)], dim=-1)
    assert relative_error(v @ sum_over_groups(w_o, heads, kv_heads).T, repeated @ w_o.T) <= RELATIVE_FOLD_ERROR


def test_selected_heads_keep_their_own_rows_and_columns() -> None:
    rows = torch.arange(12).reshape(6, 2)  # 3 heads of dimension 2
    assert select_heads(rows, (0, 2), 2).tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
    assert select_head_inputs(rows.T, (1,), 2).tolist() == [[4, 6], [5, 7]]


def edited_tensors(model: Any, attention: Any) -> dict[str, torch.Tensor]:
    """The tensors of one layer under an attention plan, computed by the edits."""
    layout = layout_of(model.config.to_dict())
    state = model.state_dict()
    plan = PruningPlan(
        method="test",
        model=ModelIdentity.of(layout),
        attention=tuple(attention for _ in range(NUM_LAYERS)),
    )
    edits = layer_edits(plan, layout)[LAYER]
    prefix = f"model.layers.{LAYER}."
    kept = {name: tensor for name, tensor in state.items() if name.startswith(prefix) and not edits.removes(name)}
    computed = {name: edit(state.__getitem__) for name, edit in edits.edits.items()}
    return {name.removeprefix(prefix): tensor for name, tensor in (kept | computed).items()}


# Biases are the config's choice unless the architecture fixes them.
FAMILY_AND_BIASES = [
    (name, biased)
    for name, family in FAMILIES.items()
    for biased in (False, True)
    if not (biased and family.fixed_biases)
]


@pytest.mark.parametrize(("model_type", "biased"), FAMILY_AND_BIASES)
def test_a_folded_value_only_layer_equals_alpha_times_the_unfolded_one(model_type: str, biased: bool) -> None:
    model = tiny_model(model_type, attention_bias=biased).double()
    block = model.model.layers[LAYER]
    attention = block.self_attn
    x = torch.randn(2, 5, 48, dtype=torch.float64)

    v = attention.v_proj(x).unflatten(-1, (2, 16))
    repeated = torch.stack([v[..., head // 3, :] for head in range(6)], dim=-2).flatten(-2)
    unfolded = attention.o_proj(repeated)
    unfolded = ALPHA * unfolded

    tensors = edited_tensors(model, ValueOnly(alpha=ALPHA))
    assert set(tensors) >= {"self_attn.v_proj.weight", "self_attn.o_proj.weight"}
    assert not any(part in name for name in tensors for part in ("q_proj", "k_proj", "q_norm", "k_norm", "v_proj.bias"))
    folded = x @ tensors["self_attn.v_proj.weight"].T @ tensors["self_attn.o_proj.weight"].T
    folded = folded + tensors.get("self_attn.o_proj.bias", 0.0)
    if model_type == "gemma2":
        rms = torch.sqrt(folded.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps)
        # transformers computes Gemma-2's norm in float32 whatever its input, so compare before that rounding.
        raw = attention.o_proj(repeated)
        unfolded = ALPHA * raw / torch.sqrt(raw.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps)
        unfolded = unfolded * (1 + block.post_attention_layernorm.weight)
        folded = folded / rms * (1 + tensors["post_attention_layernorm.weight"])
    assert relative_error(folded, unfolded) <= RELATIVE_FOLD_ERROR


def test_alpha_is_not_folded_into_gemma2s_output_projection() -> None:
    model = tiny_model("gemma2").double()
    scaled, whole = (edited_tensors(model, ValueOnly(alpha=alpha)) for alpha in (ALPHA, 1.0))
    assert torch.equal(scaled["self_attn.o_proj.weight"], whole["self_attn.o_proj.weight"])
    assert not torch.allclose(scaled["post_attention_layernorm.weight"], whole["post_attention_layernorm.weight"])


def test_kept_heads_of_a_biased_layer_select_weights_and_biases_alike() -> None:
    model = tiny_model("qwen2")
    attention = model.model.layers[LAYER].self_attn
    tensors = edited_tensors(model, KeepHeads(query_heads=(3, 5)))
    rows = [*range(48, 64), *range(80, 96)]
    assert torch.equal(tensors["self_attn.q_proj.weight"], attention.q_proj.weight[rows])
    assert torch.equal(tensors["self_attn.q_proj.bias"], attention.q_proj.bias[rows])
    assert torch.equal(tensors["self_attn.k_proj.weight"], attention.k_proj.weight[16:32])
    assert torch.equal(tensors["self_attn.v_proj.bias"], attention.v_proj.bias[16:32])
    assert torch.equal(tensors["self_attn.o_proj.weight"], attention.o_proj.weight[:, rows])
