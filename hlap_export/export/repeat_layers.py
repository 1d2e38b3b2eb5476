"""Put the layers that weren't traced into the graph: copies of one that is alike, with their own weights and cache.

The result is the graph that tracing every layer gives, but for sizes that a later layer would have read from an
earlier one: each copy computes them again, until `Simplify` merges equal expressions.
"""

from __future__ import annotations

import re
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from itertools import pairwise

import onnx_ir as ir

from hlap_export.export.alike_layers import BOUNDARY
from hlap_export.export.io_contract import IOContract, TensorSpec
from hlap_export.passes.name_nodes import SCOPES


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerNodes:
    """The nodes of one layer, and the residual stream as it enters and leaves them."""

    nodes: tuple[ir.Node, ...]
    before: ir.Value
    after: ir.Value


def repeat_layers(graph: ir.Graph, alike: Sequence[int], contract: IOContract) -> None:
    """Complete the trace of the layers `sorted(set(alike))`, a boundary node at each end of each, to that of all.

    Args:
        graph: its weights, cache inputs and cache outputs are named by the layers' numbers in the whole model.
        alike: for each layer of the model, the traced one that it repeats, or itself.
        contract: all inputs and outputs, in order.
    """
    boundaries = [node for node in graph if node.op_type == BOUNDARY]
    traced = dict(zip(sorted(set(alike)), _between(boundaries, list(graph)), strict=True))
    for place, (index, layer) in enumerate(traced.items()):
        _renumber_scopes(layer.nodes, place, index)
    layers = [
        traced[source] if source == index or not traced[source].nodes else _copied(graph, traced[source], source, index)
        for index, source in enumerate(alike)
    ]
    stream, last = _only(boundaries[0].inputs), boundaries[0]
    for index, (source, layer) in enumerate(zip(alike, layers, strict=True)):
        if not layer.nodes:  # neither attention nor MLP is left: the stream passes
            continue
        if source != index:
            graph.insert_after(last, layer.nodes)
        layer.before.replace_all_uses_with(stream)
        stream, last = layer.after, layer.nodes[-1]
    boundaries[-1].outputs[0].replace_all_uses_with(stream)
    graph.remove(boundaries, safe=True)
    _put_in_order(graph.inputs, contract.inputs)
    _put_in_order(graph.outputs, contract.outputs)


def _between(boundaries: Sequence[ir.Node], nodes: Sequence[ir.Node]) -> list[LayerNodes]:
    """The layers between boundaries, which are among the graph's nodes in the order of the trace."""
    return [
        LayerNodes(
            nodes=tuple(nodes[nodes.index(start) + 1 : nodes.index(end)]),
            before=start.outputs[0],
            after=_only(end.inputs),
        )
        for start, end in pairwise(boundaries)
    ]


def _copied(graph: ir.Graph, layer: LayerNodes, source: int, index: int) -> LayerNodes:
    """A copy of layer `source` for layer `index`, whose weights and cache join the graph; its nodes don't yet."""
    made = {value for node in layer.nodes for value in node.outputs}
    read = list(dict.fromkeys(value for node in layer.nodes for value in node.inputs if value and value not in made))
    given = [value for value in made if value.is_graph_output()]
    copy = ir.GraphView(read, [layer.after, *given], nodes=layer.nodes).clone()
    after, *outputs = copy.outputs
    before = copy.inputs[read.index(layer.before)]
    for original, stand_in in zip(read, list(copy.inputs), strict=True):
        if original is not layer.before:
            stand_in.replace_all_uses_with(_counterpart(graph, original, source, index))
    nodes = tuple(copy)
    copy.outputs.clear()
    copy.remove(nodes)
    for node in nodes:  # the graph will name them anew
        node.name = None
        for value in node.outputs:
            value.name = None
    for original, value in zip(given, outputs, strict=True):
        value.name = _renumbered(original.name or "", source, index)
        graph.outputs.append(value)
    _renumber_scopes(nodes, source, index)
    return LayerNodes(nodes=nodes, before=before, after=after)


def _counterpart(graph: ir.Graph, value: ir.Value, source: int, index: int) -> ir.Value:
    """What layer `index` reads where layer `source` reads `value`: its own weight or cache, or else the same."""
    name = _renumbered(value.name or "", source, index)
    if name == value.name:
        return value
    own = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    if value.is_initializer():
        graph.register_initializer(own)
    else:
        graph.inputs.append(own)
    return own


def _renumber_scopes(nodes: Sequence[ir.Node], source: int, index: int) -> None:
    for node in nodes:
        if SCOPES in node.metadata_props:
            node.metadata_props[SCOPES] = _renumbered(node.metadata_props[SCOPES], source, index)


def _renumbered(text: str, source: int, index: int) -> str:
    """`model.layers.3.mlp.up_proj.weight`, a cache's name, or a list of such paths, with another layer's number."""
    return re.sub(rf"((?:model\.layers|past_key_values|present)\.){source}(?=[.'])", rf"\g<1>{index}", text)


def _put_in_order(values: MutableSequence[ir.Value], specs: Sequence[TensorSpec]) -> None:
    by_name = {value.name: value for value in values}
    values.clear()
    values.extend(by_name[spec.name] for spec in specs)


def _only(values: Sequence[ir.Value | None]) -> ir.Value:
    (value,) = values
    assert value is not None
    return value
