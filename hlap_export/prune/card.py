"""The README.md of a pruned checkpoint: what was done to it, and how to load it."""

from __future__ import annotations

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.accounting import count_parameters
from hlap_export.plan.pruning_plan import (
    AttentionPlan,
    KeepHeads,
    Linear,
    MlpPlan,
    PruningPlan,
    RefitAttention,
    RefitMlp,
    Skip,
    SkipMlp,
    ValueOnly,
)

_CARD = """# A layer-wise pruned {model_class}

Made by hlap-export from a dense checkpoint, whose licence still applies. {removed:.1%} of the decoder's linear weights
and {kv_removed:.1%} of its KV cache are gone; plan.json says how that was decided.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained("this folder", trust_remote_code=True)

`modeling_hlap.py` is all the code there is; it needs torch and transformers 5.23 or newer.

| layer | attention and MLP |
|---:|---|
{layers}

All other layers of {num_layers}, counted from 0 at the embedding, are as they were.
"""


def model_card(plan: PruningPlan, layout: ModelLayout) -> str:
    """The card's text; the same plan gives the same bytes."""
    counted = count_parameters(layout, plan)
    described = [
        (index, "; ".join(filter(None, (_described(attention, layout), _described_mlp(plan.mlp.get(index))))))
        for index, attention in enumerate(plan.attention)
    ]
    return _CARD.format(
        model_class=layout.family.model_class,
        removed=counted.removed_folded_ratio,
        kv_removed=counted.kv_removed_ratio,
        layers="\n".join(f"| {index} | {change} |" for index, change in described if change),
        num_layers=layout.num_layers,
    )


def _described(attention: AttentionPlan, layout: ModelLayout) -> str:
    match attention:
        case ValueOnly():
            return f"value only: each token attends to itself, alpha {attention.alpha:g} folded in"
        case RefitAttention():
            return "attention, its last weight fitted anew"
        case Linear():
            size = "" if attention.form == "full" else f" through {attention.rank} values"
            return f"a linear map of each token{size}, fitted to the attention"
        case Skip():
            return "no attention"
        case KeepHeads():
            groups = len(attention.kv_groups(layout.heads_per_group))
            return (
                f"{len(attention.query_heads)} of {layout.num_heads} query heads, "
                f"{groups} of {layout.num_kv_heads} KV heads"
            )
        case _:
            return ""


def _described_mlp(mlp: MlpPlan | None) -> str:
    match mlp:
        case RefitMlp():
            return "last weight of the MLP fitted anew"
        case SkipMlp():
            return "no MLP"
        case None:
            return ""
