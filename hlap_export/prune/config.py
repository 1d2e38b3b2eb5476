"""The config.json of a pruned checkpoint."""

from __future__ import annotations

from typing import Any

from hlap_export.checkpoint import remote_code
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.pruning_plan import KeepHeads, Linear, PruningPlan, Skip, SkipMlp, ValueOnly


def pruned_config(dense: dict[str, Any], plan: PruningPlan, layout: ModelLayout) -> dict[str, Any]:
    """The dense config with the layers' differences written in transformers' `per_layer_config` format.

    Args:
        dense: the dense checkpoint's config.json.
        plan: a plan validated against it.
        layout: the dense layout.
    """
    family = layout.family
    overrides = {index: _override(index, plan, layout) for index in range(layout.num_layers)}
    digits = len(str(layout.num_layers - 1))
    config = dense | {
        "architectures": [f"Hlap{family.model_class}"],
        "auto_map": remote_code.auto_map(family),
        "model_type": family.pruned_model_type,
        # Written out even where the dense config leaves it to a default: a layer with fewer heads must not derive it.
        "head_dim": layout.head_dim,
        "num_key_value_heads": layout.num_kv_heads,
        "attention_kind": "full",
        "value_only_output_bias": layout.biases.qkv or layout.biases.output,
        "linear_rank": 0,
        "per_layer_config": {str(index).zfill(digits): value for index, value in overrides.items() if value},
    }
    if layout.layer_types is not None:
        config["layer_types"] = _types_of_cached_layers(layout.layer_types, plan)
    return config


def _override(index: int, plan: PruningPlan, layout: ModelLayout) -> dict[str, Any]:
    """What the layer's own config changes."""
    match attention := plan.attention[index]:
        case KeepHeads():
            counts = {
                "num_attention_heads": (len(attention.query_heads), layout.num_heads),
                "num_key_value_heads": (len(attention.kv_groups(layout.heads_per_group)), layout.num_kv_heads),
            }
            override: dict[str, Any] = {key: kept for key, (kept, dense) in counts.items() if kept != dense}
        case ValueOnly():
            override = {"attention_kind": "value_only"}
        case Linear():
            override = {"attention_kind": "linear", "linear_rank": 0 if attention.form == "full" else attention.rank}
        case _:
            override = {}
    skipped = ["attention"] if isinstance(attention, Skip) else []
    if isinstance(plan.mlp.get(index), SkipMlp):
        skipped.append("mlp")
    return override | ({"skip": skipped} if skipped else {})


def _types_of_cached_layers(layer_types: tuple[str, ...], plan: PruningPlan) -> list[str]:
    """Give each attention-free layer the type of the attending layer below it.

    transformers reads the cache's length from the first layer of each type, so that layer must keep a cache; what
    type an attention-free layer claims changes nothing else.
    """
    types: list[str] = []
    for layer_type, attention in zip(layer_types, plan.attention, strict=True):
        types.append(types[-1] if isinstance(attention, ValueOnly | Linear | Skip) else layer_type)
    return types
