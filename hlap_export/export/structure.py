"""An ONNX file as text that a person reads and a diff shows: signature, KV shapes per layer, operators."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir

_CACHE_NAME = re.compile(r"(?P<prefix>past_key_values|present)\.(?P<layer>\d+)\.(?P<part>key|value)$")


def op_counts(model: ir.Model) -> dict[str, int]:
    """How often each operator occurs, by name; other domains than ONNX's are prefixed."""
    counts = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph)
    return dict(sorted(counts.items()))


def kv_shapes(model: ir.Model) -> dict[int, tuple[Any, ...]]:
    """Shape of the past key of each cached layer, as the graph declares it, by original layer index."""
    shapes: dict[int, tuple[Any, ...]] = {}
    for value in model.graph.inputs:
        match = _CACHE_NAME.match(value.name or "")
        if match and match["part"] == "key":
            shapes[int(match["layer"])] = _dims(value)
    return shapes


def describe_file(path: Path) -> str:
    """`describe` for a file; the weights beside it needn't be there."""
    return describe(cast(Any, ir).load(path))


def describe(model: ir.Model) -> str:
    """The structure of a decoder graph as text, one fact per line."""
    graph = model.graph
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in sorted(model.opset_imports.items()))
    lines = [f"opset      {opsets}", "", "inputs", *_signature(graph.inputs), "", "outputs", *_signature(graph.outputs)]
    shapes = kv_shapes(model)
    if shapes:
        lines += ["", f"KV cache   {len(shapes)} layers"]
        lines += [f"  layer {layer:<4} {_text(shape)}" for layer, shape in shapes.items()]
    lines += ["", f"weights    {_weights(model)}", "", f"operators  {graph.num_nodes()}"]
    lines += [f"  {name:<24} {count}" for name, count in op_counts(model).items()]
    return "\n".join(lines) + "\n"


def _signature(values: Iterable[ir.Value]) -> list[str]:
    """One line per tensor; the cache's are summed up as one line per kind, their shapes being listed on their own."""
    lines: list[str] = []
    caches: dict[str, list[ir.Value]] = {}
    for value in values:
        match = _CACHE_NAME.match(value.name or "")
        if match:
            caches.setdefault(match["prefix"], []).append(value)
        else:
            lines.append(f"  {value.name:<29} {_dtype(value):<9} {_text(_dims(value))}")
    for prefix, cached in caches.items():
        lengths = ", ".join(sorted({str(_dims(value)[2]) for value in cached}))
        dtypes = ", ".join(sorted({_dtype(value) for value in cached}))
        lines.append(f"  {prefix + '.{i}.key|value':<29} {dtypes:<9} {len(cached)} tensors of length {lengths}")
    return lines


def _weights(model: ir.Model) -> str:
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1 and tensor.dtype.is_floating_point()]
    elements = sum(tensor.size for tensor in matrices)
    dtypes = ", ".join(sorted({str(tensor.dtype).lower() for tensor in matrices}))
    return f"{len(matrices)} matrices, {elements:,} elements, {dtypes}"


def _dims(value: ir.Value) -> tuple[Any, ...]:
    if value.shape is None:
        return ("?",)
    return tuple(dim if isinstance(dim, int) else (dim.value or "?") for dim in value.shape)


def _text(dims: tuple[Any, ...]) -> str:
    return f"[{', '.join(str(dim) for dim in dims)}]"


def _dtype(value: ir.Value) -> str:
    return str(value.dtype).lower() if value.dtype is not None else "?"
