"""Rules for the KV cache: updated in place by TensorScatter, or growing by Concat."""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.lint.graph import dims, input_at
from hlap_export.lint.rules import ERROR, NOTE, PUBLISHED, TRIED, NodeRule

SCATTER = ("TensorScatter", "TRT_KVCacheUpdate")

CAPACITY = "capacity"
"""The dimension that `hlap-export build` makes a number before it parses."""


def _mode(node: ir.Node) -> str | None:
    attribute = node.attributes.get("mode")
    mode = "linear" if attribute is None else attribute.as_string()
    return None if mode == "linear" else f"mode {mode!r}"


def _axis(node: ir.Node) -> str | None:
    attribute, cache = node.attributes.get("axis"), dims(input_at(node, 0))
    axis = -2 if attribute is None else attribute.as_int()
    if axis == -2 or (cache is not None and axis == len(cache) - 2):
        return None
    return f"axis {axis}"


def _rank(node: ir.Node) -> str | None:
    for value in (input_at(node, 0), input_at(node, 1)):
        shape = dims(value)
        if value is not None and shape is not None and len(shape) != 4:
            return f"{value.name} has {len(shape)} dimensions"
    return None


def _computed_cache(node: ir.Node) -> str | None:
    cache = input_at(node, 0)
    if cache is None or cache.is_graph_input():
        return None
    producer = cache.producer()
    return f"{cache.name}, which {'is a constant' if producer is None else f'{producer.op_type} computes'}"


def _hidden_output(node: ir.Node) -> str | None:
    output = node.outputs[0]
    return None if output.is_graph_output() else f"{output.name} stays inside"


def _dynamic_capacity(node: ir.Node) -> str | None:
    cache = dims(input_at(node, 0))
    if cache is None or len(cache) != 4 or isinstance(cache[2], int) or cache[2] == CAPACITY:
        return None
    return f"a cache of {cache[2] or 'unknown'} tokens"


def _growing(node: ir.Node) -> str | None:
    """A Concat that appends new tokens to a graph input and hands the whole back."""
    past, output = input_at(node, 0), node.outputs[0]
    if past is None or not past.is_graph_input() or not output.is_graph_output():
        return None
    return f"{output.name} is {past.name} with the new tokens behind it, another shape at each step"


CACHE_RULES = (
    NodeRule(
        name="cache-circular",
        severity=ERROR,
        operators=SCATTER,
        found=_mode,
        expected="mode linear",
        fix="keep the whole context in the cache, and the window in the mask",
        source=TRIED,
    ),
    NodeRule(
        name="cache-axis",
        severity=ERROR,
        operators=SCATTER,
        found=_axis,
        expected="axis -2 of a cache [batch, KV heads, tokens, head size]",
        fix="transpose the cache",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="cache-rank",
        severity=ERROR,
        operators=("TensorScatter",),
        found=_rank,
        expected="a cache and an update of 4 dimensions",
        fix="keep the head dimension, though it is 1",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="cache-not-an-input",
        severity=ERROR,
        operators=SCATTER,
        found=_computed_cache,
        expected="a cache that is an input of the network itself: it is written in place",
        fix="pass the input to the node as it is, without a Cast, Transpose or Identity between",
        source=f"{TRIED}, at build time",
    ),
    NodeRule(
        name="cache-not-an-output",
        severity=ERROR,
        operators=SCATTER,
        found=_hidden_output,
        expected="the updated cache as an output of the network, at the same address",
        fix="make it an output",
        source=f"{TRIED}, at build time",
    ),
    NodeRule(
        name="cache-capacity",
        severity=ERROR,
        operators=SCATTER,
        found=_dynamic_capacity,
        expected=f"a capacity that is a number, or named {CAPACITY!r}, which `hlap-export build` sets",
        fix="give the cache a fixed number of tokens",
        source=TRIED,
    ),
    NodeRule(
        name="cache-grows",
        severity=NOTE,
        operators=("Concat",),
        found=_growing,
        expected="a cache of a fixed capacity, updated in place",
        fix="export with --flavour trt: a growing cache is copied in each step, and no CUDA graph can be kept",
        source="NVIDIA/TensorRT 11.1: KVCacheUpdate, and CUDA graphs of fixed shapes",
    ),
)
