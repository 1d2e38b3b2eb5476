"""Weights of linear layers and embeddings in 4 or 8 bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import onnx_ir as ir

from hlap_export.passes.blockwise import SCALES, Blockwise
from hlap_export.passes.nodes import constant, node_before, register, required
from hlap_export.weights import StreamedRows, derived, streamed, transposed

MICROSOFT = "com.microsoft"
BIAS = 5
"""The input of `MatMulNBits` that is added to the product."""

INT8_ARITHMETIC = 4
"""`accuracy_level`: activations are rounded to 8 bits, block by block, and multiplied as integers.

Measured on one AVX-512 core, [1, 2048] x [2048, 4096]: 0.20 ms in 4 bits instead of 0.72 with float activations, and
0.24 instead of 56 in 8 bits, for which there is no other fast kernel. It adds 0.5% to the error of 8-bit weights and
nothing that can be seen to that of 4-bit ones.
"""


@dataclass(frozen=True, slots=True)
class _Stored:
    """A matrix [N, K] as packed weights [N, G, b], scales [N, G] and perhaps zero points, all initializers."""

    format: Blockwise
    rows: int
    columns: int
    packed: ir.Value
    scales: ir.Value
    zero_points: ir.Value | None = None


class QuantiseWeights(ir.passes.InPlacePass):
    """`MatMul(x, W)` becomes `MatMulNBits`, and the embedding's `Gather` becomes `GatherBlockQuantized`.

    That is every linear layer, the head too; a bias that is added to it alone becomes an input of the operator. An
    embedding that is tied to the head reads the head's packed matrix, so that the vocabulary is stored once; any other
    has a format of its own. Its rows must be whole blocks, or else it stays as it is. Nothing is computed before the
    file is written.

    Args:
        linear: how the matrices of linear layers are stored.
        embedding: how an embedding is stored that is no head's too.
    """

    def __init__(self, linear: Blockwise, embedding: Blockwise) -> None:
        super().__init__()
        self.linear, self.embedding = linear, embedding

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        stored: dict[ir.Value, _Stored] = {}
        for node in list(graph):
            if (weight := _linear_weight(node)) is not None:
                if weight not in stored:
                    stored[weight] = _store(graph, weight, _rows(node, weight), self.linear)
                _multiply(node, stored[weight])
        for node in list(graph):
            if (table := _embedding_table(node, self.embedding.block_size)) is not None:
                if table not in stored:
                    matrix = streamed(table.const_value)
                    stored[table] = _store(graph, table, matrix, self.embedding, as_table=True)
                _look_up(node, stored[table])
        for weight in stored:
            if not weight.uses() and weight.name is not None:
                del graph.initializers[weight.name]
        if stored:
            graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, bool(stored))


def quantisation(model: ir.Model) -> dict[str, Any]:
    """How the weights of a quantised graph are stored, for a manifest."""
    bits: dict[str, int] = {}
    for node in model.graph:
        if (node.domain, node.op_type) in ((MICROSOFT, "MatMulNBits"), (MICROSOFT, "GatherBlockQuantized")):
            scales = required(node, 2).name or ""
            bits[scales.removesuffix(SCALES)] = node.attributes["bits"].as_int()
    return {
        "rounding": "to nearest, blocks with a scale, in 8 bits also a zero point, by ONNX Runtime's kernels",
        "accuracy_level": INT8_ARITHMETIC,
        "bits": bits,
    }


def _linear_weight(node: ir.Node) -> ir.Value | None:
    """The initializer that a product multiplies by: W [in, out] of a `MatMul`, or a tied head's embedding [V, D]."""
    is_tied_head = (node.domain, node.op_type) == (MICROSOFT, "FusedMatMul") and _attributes(node) == {"transB": 1}
    if not is_tied_head and (node.domain, node.op_type) != ("", "MatMul"):
        return None
    weight = required(node, 1)
    return weight if weight.is_initializer() and _is_matrix(weight) else None


def _attributes(node: ir.Node) -> dict[str, object]:
    return {name: attribute.value for name, attribute in node.attributes.items()}


def _rows(product: ir.Node, weight: ir.Value) -> StreamedRows:
    """The weight as torch keeps it, [out, in]."""
    return transposed(weight.const_value) if product.op_type == "MatMul" else streamed(weight.const_value)


def _embedding_table(node: ir.Node, block_size: int) -> ir.Value | None:
    """The initializer [V, D] of which a `Gather` reads the rows of the input ids, if D is a number of blocks."""
    if node.op_type != "Gather" or node.domain or required(node, 1).name != "input_ids":
        return None
    table = required(node, 0)
    if not table.is_initializer() or not _is_matrix(table) or streamed(table.const_value).dims[1] % block_size:
        return None
    return table


def _is_matrix(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 2 and value.dtype == ir.DataType.FLOAT


def _store(
    graph: ir.Graph, weight: ir.Value, matrix: StreamedRows, blockwise: Blockwise, *, as_table: bool = False
) -> _Stored:
    """Register the parts of a matrix [N, K]; those of a table [N, G * b] are what `GatherBlockQuantized` reads."""
    assert weight.name is not None
    rows, columns = matrix.dims
    packed, *others = blockwise.parts(weight.name, rows, columns)
    if as_table:
        packed = replace(packed, shape=(rows, prod(packed.shape[1:])))
    parts = (packed, *others)
    tensors = derived(matrix, blockwise.quantise, parts)
    values = [register(graph, part.name, tensor) for part, tensor in zip(parts, tensors, strict=True)]
    return _Stored(blockwise, rows, columns, *values)


def _multiply(product: ir.Node, weight: _Stored) -> None:
    attributes = {
        "K": weight.columns,
        "N": weight.rows,
        "bits": weight.format.bits,
        "block_size": weight.format.block_size,
        "accuracy_level": INT8_ARITHMETIC,
    }
    inputs = [product.inputs[0], weight.packed, weight.scales, *_zero_points(weight)]
    addition, bias = _bias(product, weight.rows)
    if addition is not None:
        graph = product.graph
        assert graph is not None
        ir.convenience.replace_all_uses_with(addition.outputs[0], product.outputs[0])
        graph.remove(addition, safe=True)
        inputs += [None] * (BIAS - len(inputs)) + [bias]
    _replace(product, "MatMulNBits", inputs, attributes)


def _zero_points(stored: _Stored) -> list[ir.Value | None]:
    """The last inputs of an operator that reads the matrix."""
    return [] if stored.zero_points is None else [stored.zero_points]


def _bias(product: ir.Node, width: int) -> tuple[ir.Node, ir.Value] | tuple[None, None]:
    """The addition that alone reads a product, and the initializer [N] that it adds."""
    output = product.outputs[0]
    readers = [use.node for use in output.uses()]
    if len(readers) != 1 or (readers[0].domain, readers[0].op_type) != ("", "Add") or output.is_graph_output():
        return None, None
    addition = readers[0]
    other = required(addition, 1 if addition.inputs[0] is output else 0)
    is_bias = other.is_initializer() and other.shape is not None and list(other.shape) == [width]
    if not is_bias or addition.outputs[0].is_graph_output():
        return None, None
    return addition, other


def _look_up(gather: ir.Node, table: _Stored) -> None:
    graph, packed = gather.graph, table.packed
    assert graph is not None
    if packed.shape is not None and len(packed.shape) == 3:  # the head's blocks; a reshape takes no copy
        packed = node_before(gather, "Reshape", [packed, constant(graph, [table.rows, -1])], {"allowzero": 0})
    attributes = {
        "bits": table.format.bits,
        "block_size": table.format.block_size,
        "gather_axis": 0,
        "quantize_axis": 1,
    }
    inputs = [packed, gather.inputs[1], table.scales, *_zero_points(table)]
    _replace(gather, "GatherBlockQuantized", inputs, attributes)


def _replace(node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int]) -> None:
    assert node.graph is not None
    quantised = ir.node(op_type, inputs, attributes, domain=MICROSOFT, name=node.name)
    quantised.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [quantised], node.outputs, quantised.outputs)
