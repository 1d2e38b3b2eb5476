"""Rules for the operator Attention: what its importer refuses, ignores, or has no fused kernel for."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.lint.graph import dims, has_output, input_at, number_attribute
from hlap_export.lint.rules import DOCUMENTED, ERROR, PUBLISHED, SEEN_ON_RTX, TRIED, WARNING, NodeRule
from hlap_export.passes.attention_kernels import (
    HEAD_DIM_MULTIPLE,
    MAX_HEAD_DIM,
    MAX_SINGLE_TOKEN_CAPACITY,
    MIN_HEAD_DIM,
    MIN_HEADS,
    MIN_SINGLE_TOKEN_HEADS,
)

QUERY, KEY, VALUE, MASK, PAST_KEY, PAST_VALUE, LENGTHS = range(7)
ATTENTION = ("Attention",)

HEAD_DIMS = f"{MIN_HEAD_DIM} to {MAX_HEAD_DIM} in steps of {HEAD_DIM_MULTIPLE}"

LEAST_HEAD_DIM_OF_ONE_TOKEN = 8


def _past(node: ir.Node) -> str | None:
    if input_at(node, PAST_KEY) is not None or input_at(node, PAST_VALUE) is not None:
        return "past_key and past_value are inputs"
    return "present_key is an output" if has_output(node, 1) or has_output(node, 2) else None


def _lengths(node: ir.Node) -> str | None:
    lengths = input_at(node, LENGTHS)
    return None if lengths is None else f"nonpad_kv_seqlen is {lengths.name}, which is ignored without an error"


def _soft_cap(node: ir.Node) -> str | None:
    cap = number_attribute(node, "softcap")
    return f"softcap = {cap:g}" if cap else None


def _scores(node: ir.Node) -> str | None:
    return "qk_matmul_output is an output" if has_output(node, 3) else None


def _causal_alignment(node: ir.Node) -> str | None:
    query, key = dims(input_at(node, QUERY)), dims(input_at(node, KEY))
    if not number_attribute(node, "is_causal") or query is None or key is None:
        return None
    new, every = query[-2], key[-2]
    if new == every and new is not None:
        return None
    return f"is_causal = 1 with {new or 'unknown'} queries on {every or 'unknown'} keys"


def _causal_and_mask(node: ir.Node) -> str | None:
    both = number_attribute(node, "is_causal") and input_at(node, MASK) is not None
    return "is_causal = 1 beside a mask" if both else None


def _mask_type(node: ir.Node) -> str | None:
    mask, query = input_at(node, MASK), input_at(node, QUERY)
    if mask is None or query is None or mask.dtype in (None, ir.DataType.BOOL) or query.dtype is None:
        return None
    if mask.dtype == query.dtype:
        return None
    return f"{mask.name} is {str(mask.dtype).lower()}, the queries are {str(query.dtype).lower()}"


def _rank(node: ir.Node) -> str | None:
    for index in (QUERY, KEY, VALUE, MASK):
        value = input_at(node, index)
        shape = dims(value)
        if value is not None and shape is not None and len(shape) != 4:
            return f"{value.name} has {len(shape)} dimensions"
    return None


def _head_counts(node: ir.Node) -> str | None:
    query, key, value = (dims(input_at(node, index)) for index in (QUERY, KEY, VALUE))
    if any(shape is None or len(shape) != 4 for shape in (query, key, value)):
        return None
    assert query is not None and key is not None and value is not None
    if not all(isinstance(count, int) for count in (query[1], key[1], query[3], key[3], value[3])):
        return "a head count or head size that isn't a number"
    if int(query[1] or 0) % int(key[1] or 1):
        return f"{query[1]} query heads on {key[1]} KV heads"
    sizes = {query[3], key[3], value[3]}
    return None if len(sizes) == 1 else f"heads of sizes {query[3]}, {key[3]} and {value[3]}"


def _no_kernel(node: ir.Node) -> str | None:
    """What no fused kernel takes. A node that isn't decomposable then fails the build."""
    query = input_at(node, QUERY)
    query_BHTE = dims(query)
    if number_attribute(node, "TRT_decomposable") or query is None or query_BHTE is None or len(query_BHTE) != 4:
        return None
    if query.dtype == ir.DataType.FLOAT:
        return "float32"
    _, num_heads, new_tokens, head_dim = query_BHTE
    least = LEAST_HEAD_DIM_OF_ONE_TOKEN if new_tokens == 1 else MIN_HEAD_DIM
    if isinstance(head_dim, int) and (head_dim % HEAD_DIM_MULTIPLE or not least <= head_dim <= MAX_HEAD_DIM):
        return f"heads of size {head_dim}"
    if isinstance(num_heads, int) and num_heads < MIN_HEADS:
        return f"{num_heads} query head"
    return _beyond_one_token(node) if new_tokens == 1 else None


def _no_kernel_for_one_token(node: ir.Node) -> str | None:
    """What only the kernel for prompts takes, where the number of new tokens is left open."""
    query_BHTE = dims(input_at(node, QUERY))
    if number_attribute(node, "TRT_decomposable") or query_BHTE is None or len(query_BHTE) != 4:
        return None
    return None if isinstance(query_BHTE[2], int) or _no_kernel(node) else _beyond_one_token(node)


def _beyond_one_token(node: ir.Node) -> str | None:
    query_BHTE, key_BKSE = dims(input_at(node, QUERY)), dims(input_at(node, KEY))
    num_heads = None if query_BHTE is None else query_BHTE[1]
    capacity = None if key_BKSE is None else key_BKSE[-2]
    if isinstance(num_heads, int) and num_heads < MIN_SINGLE_TOKEN_HEADS:
        return f"{num_heads} query heads"
    if isinstance(capacity, int) and capacity > MAX_SINGLE_TOKEN_CAPACITY:
        return f"{capacity} cached tokens"
    return None


def _own_operator(node: ir.Node) -> str | None:
    return f"{node.op_type}, whose inputs differ between versions"


ATTENTION_RULES = (
    NodeRule(
        name="attention-past",
        severity=ERROR,
        operators=ATTENTION,
        found=_past,
        expected="keys and values of all tokens as inputs, and one output",
        fix="update the cache by TensorScatter before the node (--flavour trt)",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="attention-lengths-ignored",
        severity=ERROR,
        operators=ATTENTION,
        found=_lengths,
        expected="no nonpad_kv_seqlen: slots of the cache that hold nothing would be attended to",
        fix="say it in a boolean mask, or set IAttention.key_value_lengths after parsing",
        source=f"{PUBLISHED}; {TRIED}, which builds it with a warning about an unused input",
    ),
    NodeRule(
        name="attention-soft-cap",
        severity=ERROR,
        operators=ATTENTION,
        found=_soft_cap,
        expected="no soft-capping",
        fix="write the layer as MatMul, Tanh and Softmax (--flavour trt does)",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="attention-scores",
        severity=ERROR,
        operators=ATTENTION,
        found=_scores,
        expected="the attended values as the only output",
        fix="drop the fourth output",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="attention-causal-alignment",
        severity=ERROR,
        operators=ATTENTION,
        found=_causal_alignment,
        expected="as many queries as keys: is_causal is aligned at the upper left, so that a decode step would see "
        "the first token alone",
        fix="say it in a boolean mask, or set IAttention.causal_kind = LOWER_RIGHT after parsing",
        source=f"{TRIED}, and IAttention in NvInfer.h 11.1",
    ),
    NodeRule(
        name="attention-causal-and-mask",
        severity=ERROR,
        operators=ATTENTION,
        found=_causal_and_mask,
        expected="one of both",
        fix="put causality into the mask",
        source=TRIED,
    ),
    NodeRule(
        name="attention-mask-type",
        severity=ERROR,
        operators=ATTENTION,
        found=_mask_type,
        expected="a mask that is boolean, or of the queries' type: another one parses, and fails the build",
        fix="make the mask boolean",
        source=TRIED,
    ),
    NodeRule(
        name="attention-rank",
        severity=DOCUMENTED,
        operators=ATTENTION,
        found=_rank,
        expected="queries, keys, values and mask [batch, heads, tokens, size]",
        fix="reshape and transpose before the node",
        source=PUBLISHED,
    ),
    NodeRule(
        name="attention-head-counts",
        severity=ERROR,
        operators=ATTENTION,
        found=_head_counts,
        expected="a known number of query heads that the KV heads divide, all of one size",
        fix="export with head counts as numbers; keep whole KV groups in the plan",
        source=TRIED,
    ),
    NodeRule(
        name="attention-no-kernel",
        severity=SEEN_ON_RTX,
        operators=ATTENTION,
        found=_no_kernel,
        expected=f"what fused kernels take: float16 or bfloat16, heads of size {HEAD_DIMS}, {MIN_HEADS} query heads "
        f"or more, and for one new token {MIN_SINGLE_TOKEN_HEADS}, on at most {MAX_SINGLE_TOKEN_CAPACITY} cached",
        fix="set the attribute TRT_decomposable = 1, or write the layer as MatMul and Softmax (--flavour trt does)",
        source=TRIED,
    ),
    NodeRule(
        name="attention-one-token",
        severity=WARNING,
        operators=ATTENTION,
        found=_no_kernel_for_one_token,
        expected=f"{MIN_SINGLE_TOKEN_HEADS} query heads and at most {MAX_SINGLE_TOKEN_CAPACITY} cached tokens, for "
        "profiles of one new token alone",
        fix="let that profile take up to 2 new tokens: the kernel for prompts is chosen then",
        source=TRIED,
    ),
    NodeRule(
        name="attention-unstable-operator",
        severity=WARNING,
        operators=("TRT_Attention",),
        found=_own_operator,
        expected="the standard operator Attention",
        fix="use Attention with a boolean mask",
        source=f"docs/TRT_custom_ops.md at 2f3fa34 has the lengths at inputs 6 and 7; {TRIED}, which takes 4 and 5",
    ),
)
