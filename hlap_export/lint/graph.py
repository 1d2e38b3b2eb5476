"""A graph as the rules see it: typed values, constants, and which layer of the model a node came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import onnx_ir as ir
from onnx_ir.passes import common

from hlap_export.errors import ArtefactError

_LAYER = re.compile(r"(?:^|[./])(?:layers|past_key_values|present)\.(\d+)(?:[./:]|$)")

Dims = tuple[int | str | None, ...]


def load_graph(path: Path) -> ir.Model:
    """The model of a file with types and shapes of all values; its weights needn't be there, and aren't read.

    Raises:
        ArtefactError: not an ONNX file.
    """
    try:
        model = cast(ir.Model, cast(Any, ir).load(path))
    except Exception as error:  # protobuf's own classes, and what onnx_ir makes of a file that is something else
        raise ArtefactError(
            where=str(path),
            expected="an ONNX model",
            found=" ".join(str(error).split())[:200] or type(error).__name__,
            fix="pass the folder that `hlap-export export` wrote, or an .onnx file",
        ) from error
    common.ShapeInferencePass()(model)
    return model


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Every node, those inside of branches and loops too."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def layer_of(name: str) -> int | None:
    """The layer that a node or value belongs to by its name, 0 at the embedding."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def dims(value: ir.Value | None) -> Dims | None:
    """A value's dimensions, a name where one is dynamic, None where nothing is known of it; None without a rank."""
    if value is None or value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def input_at(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def has_output(node: ir.Node, index: int) -> bool:
    """Whether an optional output is asked for."""
    return index < len(node.outputs) and bool(node.outputs[index].name)


def number_attribute(node: ir.Node, name: str) -> float:
    """A number among the attributes; 0, which is ONNX's default for all that are asked for here, if it isn't stated."""
    attribute = node.attributes.get(name)
    return 0.0 if attribute is None else float(cast(Any, attribute).value)


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is known when the engine is built."""
    producer = None if value is None else value.producer()
    return value is not None and (value.const_value is not None or (producer is not None and _folds(producer)))


def _folds(node: ir.Node) -> bool:
    return node.op_type == "Constant" or (
        node.op_type in ("Identity", "Cast", "Unsqueeze", "Reshape")
        and all(is_constant(value) for value in node.inputs)
    )
