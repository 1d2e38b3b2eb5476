"""The independent reference: the dense Hugging Face model, masked. Nothing here uses the code under test.

A value-only layer is full attention under a diagonal mask, its output times alpha at the family's place; a skipped
layer is one with alpha 0; a removed head is one whose slice of o_proj's input is zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from hlap_export.plan.pruning_plan import KeepHeads, PruningPlan, Skip, ValueOnly


@contextmanager
def masked(model: Any, plan: PruningPlan) -> Iterator[Any]:
    """The dense model behaving as the plan says, for uncached forwards in eager attention."""
    assert model.config._attn_implementation == "eager"
    with ExitStack() as hooks:
        for index, attention in enumerate(plan.attention):
            layer = model.model.layers[index]
            if isinstance(attention, ValueOnly | Skip):
                alpha = attention.alpha if isinstance(attention, ValueOnly) else 0.0
                after_norm = hasattr(layer, "pre_feedforward_layernorm")
                scaled = layer.post_attention_layernorm if after_norm else layer.self_attn.o_proj
                pre = layer.self_attn.register_forward_pre_hook(_attend_to_oneself, with_kwargs=True)
                post = scaled.register_forward_hook(lambda module, inputs, output, alpha=alpha: alpha * output)
                hooks.callback(pre.remove)
                hooks.callback(post.remove)
            elif isinstance(attention, KeepHeads):
                kept = torch.zeros(plan.model.num_heads)
                kept[list(attention.query_heads)] = 1
                mask = kept.repeat_interleave(plan.model.head_dim)
                hook = layer.self_attn.o_proj.register_forward_pre_hook(
                    lambda module, inputs, mask=mask: (inputs[0] * mask.to(inputs[0].dtype),)
                )
                hooks.callback(hook.remove)
        yield model


def _attend_to_oneself(module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    hidden = keywords["hidden_states"]
    batch, length, _ = hidden.shape
    off_diagonal = ~torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(batch, 1, length, length, dtype=hidden.dtype)
    return arguments, keywords | {"attention_mask": mask.masked_fill(off_diagonal, torch.finfo(hidden.dtype).min)}


@torch.no_grad()
def masked_logits(model: Any, plan: PruningPlan, input_ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Logits [B, T, V] of the masked dense model."""
    with masked(model, plan):
        return model(input_ids=input_ids, use_cache=False, **inputs).logits
