"""Which attention TensorRT has fused kernels for, found by building small graphs with TensorRT-RTX 1.7.1.

Each graph was one `Attention` with a boolean mask over a cache that `TensorScatter` writes, built in float16 and
bfloat16 without permission to decompose, so that a missing kernel is a refused build. There are two kernels. That for
prompts (its name is `_gemm_mha_v2`) takes any number of tokens. That for one token (`_gemv_mha_v1`) is taken when a
profile allows no more than one, and has limits of its own; where it doesn't fit, a profile of one to two tokens takes
the other kernel in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

HALF_PRECISION = ("float16", "bfloat16")
MIN_HEADS, MIN_SINGLE_TOKEN_HEADS = 2, 4
MIN_HEAD_DIM, MAX_HEAD_DIM, HEAD_DIM_MULTIPLE = 16, 256, 8

MAX_SINGLE_TOKEN_CAPACITY = 20480
"""Tokens of cache; 24,064 was built and 24,576 refused, for any number and size of heads."""

COMPILER = "TensorRT-RTX 1.7.1"

Phase = Literal["single_token_kernel", "prompt_kernel", "decomposed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionForm:
    """How one layer's attention is written, and what the compiler makes of it.

    Attributes:
        layer: 0 at the embedding.
        form: "operator" is ONNX's `Attention`; "plain" is products and a softmax.
        prefill: what runs it for a prompt; "decomposed" is several kernels.
        decode: likewise for one new token, where every layer has a kernel for one: see `built_forms`.
        reason: why it isn't the best of both; empty where it is.
    """

    layer: int
    form: Literal["operator", "plain"]
    prefill: Phase
    decode: Phase
    reason: str

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def attention_form(*, layer: int, num_heads: int, head_dim: int, dtype: str, softcap: float) -> AttentionForm:
    """The form for a layer with so many query heads; any number of KV heads that divides it has the same kernels."""
    if reason := _no_kernel(num_heads, head_dim, dtype, softcap):
        return AttentionForm(layer=layer, form="plain", prefill="decomposed", decode="decomposed", reason=reason)
    few = num_heads < MIN_SINGLE_TOKEN_HEADS
    return AttentionForm(
        layer=layer,
        form="operator",
        prefill="prompt_kernel",
        decode="prompt_kernel" if few else "single_token_kernel",
        reason=f"{num_heads} query heads: {COMPILER}'s kernel for one token needs {MIN_SINGLE_TOKEN_HEADS}"
        if few
        else "",
    )


def decode_tokens(forms: Iterable[Mapping[str, Any]], capacity: int) -> int:
    """The most new tokens that a decode profile should allow, so that every layer has a fused kernel: 1 or 2.

    Args:
        forms: what the export's manifest says of each layer (`AttentionForm.facts`).
        capacity: tokens of cache.
    """
    decode = {form["decode"] for form in forms}
    too_long = capacity > MAX_SINGLE_TOKEN_CAPACITY and "single_token_kernel" in decode
    return 2 if too_long or "prompt_kernel" in decode else 1


def built_forms(forms: Sequence[Mapping[str, Any]], capacity: int) -> list[dict[str, Any]]:
    """What runs each layer in an engine of so many tokens of cache, and why: all layers share its decode profile.

    Args:
        forms: what the export's manifest says of each layer.
        capacity: tokens of cache.
    """
    if decode_tokens(forms, capacity) == 1:
        return [dict(form) for form in forms]
    few = next((form for form in forms if form["decode"] == "prompt_kernel"), None)
    reason = (
        f"the decode profile takes 2 tokens for all layers because of layer {few['layer']}, {few['reason']}"
        if few
        else f"{capacity} tokens of cache: {COMPILER}'s kernel for one token takes {MAX_SINGLE_TOKEN_CAPACITY}"
    )
    return [
        {**form, "decode": "prompt_kernel", "reason": reason} if form["decode"] == "single_token_kernel" else dict(form)
        for form in forms
    ]


def _no_kernel(num_heads: int, head_dim: int, dtype: str, softcap: float) -> str:
    """Why the compiler has no fused kernel at all; empty if it has one."""
    if softcap:
        return f"soft-capped scores ({softcap:g}): {COMPILER}'s parser refuses the attribute"
    if dtype not in HALF_PRECISION:
        return f"{dtype}: {COMPILER}'s kernel for prompts computes in half precision"
    if num_heads < MIN_HEADS:
        return f"one query head: {COMPILER}'s kernels need {MIN_HEADS}"
    if head_dim % HEAD_DIM_MULTIPLE or not MIN_HEAD_DIM <= head_dim <= MAX_HEAD_DIM:
        return (
            f"head size {head_dim}: {COMPILER}'s kernels take multiples of {HEAD_DIM_MULTIPLE} "
            f"from {MIN_HEAD_DIM} to {MAX_HEAD_DIM}"
        )
    return ""
