"""The part of a decoder above its last attention, which computes each token from itself alone."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir


class PerToken:
    """Nodes that no attention follows: for a token whose logits nobody asks for, they needn't run.

    Args:
        graph: with the shapes of the residual stream.
        contexts: for each attention the node that gives its context, [B, T, channels].

    Attributes:
        entering: values from below, [B, T, channels]; for each the first of the nodes that reads it.
    """

    def __init__(self, graph: ir.Graph, contexts: Iterable[ir.Node]) -> None:
        self._graph = graph
        self._below = _with_ancestors(list(contexts))
        self.entering: dict[ir.Value, ir.Node] = {}
        for node in graph:
            if node in self._below:
                continue
            for value in node.inputs:
                if value is not None and value.producer() in self._below and _is_per_token(value):
                    self.entering.setdefault(value, node)

    def read_instead(self, value: ir.Value, selected: ir.Value) -> None:
        """Let the nodes read `selected`, some tokens of `value`."""
        for use in tuple(value.uses()):
            if use.node not in self._below and use.node is not selected.producer():
                use.node.replace_input_with(use.idx, selected)

    def rename_sequence(self, dimension: str) -> None:
        """Say in the nodes' shapes that there may be fewer tokens: a runtime plans its buffers by them."""
        whole = next(iter(self.entering)).shape
        assert whole is not None
        for node in self._graph:
            for value in node.outputs if node not in self._below else ():
                if value.shape is not None:
                    value.shape = ir.Shape([dimension if dim == whole[1] else dim for dim in value.shape])


def _with_ancestors(nodes: list[ir.Node]) -> set[ir.Node]:
    found: set[ir.Node] = set()
    while nodes:
        node = nodes.pop()
        if node not in found:
            found.add(node)
            nodes += [producer for value in node.inputs if value is not None and (producer := value.producer())]
    return found


def _is_per_token(value: ir.Value) -> bool:
    """Whether it is [B, T, channels], as the residual stream is."""
    return value.shape is not None and len(value.shape) == 3 and isinstance(value.shape[2], int)
