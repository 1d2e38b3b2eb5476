"""Building blocks for passes: a node before another one, a shared integer constant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from hlap_export.weights import StreamedTensor


def node_before(
    anchor: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, int | float | Sequence[int]] | None = None,
    *,
    like: ir.Value | None = None,
    num_outputs: int = 1,
) -> ir.Value:
    """Insert a node before `anchor`, carrying its module scope, and return its first output.

    `like` gives the output's type and shape where they are known; otherwise shape inference finds them.
    """
    assert anchor.graph is not None
    node = ir.node(op_type, inputs, dict(attributes or {}), num_outputs=num_outputs)
    node.metadata_props.update(anchor.metadata_props)
    output = node.outputs[0]
    if like is not None:
        output.shape, output.type = like.shape, like.type
    anchor.graph.insert_before(anchor, node)
    return output


def required(node: ir.Node, index: int) -> ir.Value:
    """An input that the operator can't be without."""
    value = node.inputs[index]
    assert value is not None
    return value


def only_reader(node: ir.Node, op_type: str) -> ir.Node:
    """The one node that reads the first output of `node`."""
    (use,) = node.outputs[0].uses()
    assert use.node.op_type == op_type, f"{node.name} is read by {use.node.op_type}, not by {op_type}"
    return use.node


def static_dim(value: ir.Value, axis: int) -> int:
    """A dimension that the tracer knows as a number, such as a count of heads or their size."""
    dim = value.shape[axis] if value.shape is not None else None
    assert isinstance(dim, int), f"dimension {axis} of {value.name} is {dim}"
    return dim


def constant(graph: ir.Graph, values: Sequence[int]) -> ir.Value:
    """The int64 vector `values` as an initializer, one per distinct vector."""
    name = "ints." + ("_".join(str(value).replace("-", "m") for value in values) or "empty")
    return initializer(graph, name, np.asarray(values, dtype=np.int64))


def initializer(graph: ir.Graph, name: str, array: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    """The initializer `name`, made from `array` if the graph has none of this name."""
    if name in graph.initializers:
        return graph.initializers[name]
    tensor = ir.Tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def register(graph: ir.Graph, name: str, tensor: StreamedTensor) -> ir.Value:
    """The initializer `name` with numbers that are read when the file is written."""
    tensor.name = name
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.dims), const_value=tensor)
    graph.register_initializer(value)
    return value
