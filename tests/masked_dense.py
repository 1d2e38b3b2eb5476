"""The independent reference: the dense Hugging Face model, masked. Nothing here uses the code under test.

A value-only layer is full attention under a diagonal mask, its output times alpha at the family's place; a skipped
layer is one with alpha 0; a removed head is one whose slice of o_proj's input is zero; a missing MLP adds zero. A
linear layer's attention has what it returns replaced by the map of what it was given, from the side file's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from hlap_export.plan.pruning_plan import (
    KeepHeads,
    Linear,
    PruningPlan,
    RefitAttention,
    RefitMlp,
    Skip,
    SkipMlp,
    ValueOnly,
)

Weights = Mapping[str, torch.Tensor]
NO_WEIGHTS: Weights = {}


@contextmanager
def masked(model: Any, plan: PruningPlan, fitted: Weights = NO_WEIGHTS) -> Iterator[Any]:
    """The dense model behaving as the plan says, for uncached forwards in eager attention.

    Args:
        model: the dense model.
        plan: what becomes of its layers.
        fitted: the side file's tensors; where one is missing yet, the dense part stays.
    """
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
            elif isinstance(attention, Linear) and f"fitted.{index}.o_proj.weight" in fitted:
                _replace_attention(layer, index, fitted, hooks)
            elif isinstance(attention, RefitAttention):
                after_norm = hasattr(layer, "post_feedforward_layernorm")
                last = layer.post_attention_layernorm if after_norm else layer.self_attn.o_proj
                _replace_weight(last, fitted.get(f"fitted.{index}.attention.weight"), hooks)
            _change_mlp(layer, index, plan, fitted, hooks)
        yield model


def _replace_attention(layer: Any, index: int, fitted: Weights, hooks: ExitStack) -> None:
    """Let the attention, and the norm that may follow it, return `O V x + b` of the attention's input x."""
    given: list[torch.Tensor] = []

    def remember(module: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        given[:] = [keywords["hidden_states"]]
        return output if hasattr(layer, "pre_feedforward_layernorm") else (mapped(), None)

    def mapped() -> torch.Tensor:
        w_o, (x,) = fitted[f"fitted.{index}.o_proj.weight"].to(given[0].dtype), given
        w_v = fitted.get(f"fitted.{index}.v_proj.weight")
        if w_v is None and w_o.shape[1] != x.shape[-1]:  # the dense value projection
            w_v = layer.self_attn.v_proj.weight
        values = x if w_v is None else torch.einsum("btd,rd->btr", x, w_v.to(x.dtype))
        return torch.einsum("btr,dr->btd", values, w_o) + fitted[f"fitted.{index}.o_proj.bias"].to(x.dtype)

    hooks.callback(layer.self_attn.register_forward_hook(remember, with_kwargs=True).remove)
    if hasattr(layer, "pre_feedforward_layernorm"):
        norm = layer.post_attention_layernorm
        hooks.callback(norm.register_forward_hook(lambda module, inputs, output: mapped()).remove)


def _change_mlp(layer: Any, index: int, plan: PruningPlan, fitted: Weights, hooks: ExitStack) -> None:
    after_norm = hasattr(layer, "post_feedforward_layernorm")
    if isinstance(plan.mlp.get(index), SkipMlp):
        last = layer.post_feedforward_layernorm if after_norm else layer.mlp
        hooks.callback(last.register_forward_hook(lambda module, inputs, output: 0 * output).remove)
    elif isinstance(plan.mlp.get(index), RefitMlp):
        last = layer.post_feedforward_layernorm if after_norm else layer.mlp.down_proj
        _replace_weight(last, fitted.get(f"fitted.{index}.mlp.weight"), hooks)


def _replace_weight(module: Any, weight: torch.Tensor | None, hooks: ExitStack) -> None:
    dense = module.weight
    if weight is not None:
        module.weight = torch.nn.Parameter(weight.clone().to(dense.dtype), requires_grad=False)
        hooks.callback(setattr, module, "weight", dense)


def _attend_to_oneself(module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    hidden = keywords["hidden_states"]
    batch, length, _ = hidden.shape
    off_diagonal = ~torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(batch, 1, length, length, dtype=hidden.dtype)
    return arguments, keywords | {"attention_mask": mask.masked_fill(off_diagonal, torch.finfo(hidden.dtype).min)}


@torch.no_grad()
def masked_logits(
    model: Any, plan: PruningPlan, input_ids: torch.Tensor, *, fitted: Weights = NO_WEIGHTS, **inputs: Any
) -> torch.Tensor:
    """Logits [B, T, V] of the masked dense model."""
    with masked(model, plan, fitted):
        return model(input_ids=input_ids, use_cache=False, **inputs).logits
