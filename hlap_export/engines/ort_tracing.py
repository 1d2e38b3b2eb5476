"""An ONNX Runtime session that hands out values from inside its graph, by making them outputs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from hlap_export.engines.tracing import GraphValue


def graph_values(graph: Path) -> tuple[GraphValue, ...]:
    """Every value of an ONNX graph, in the order of computation; weights aren't read."""
    nodes = importlib.import_module("onnx").load(graph, load_external_data=False).graph.node
    return tuple(
        GraphValue(name=name, node=node.name, op_type=node.op_type, index=index, inputs=tuple(node.input))
        for node in nodes
        for index, name in enumerate(node.output)
        if name
    )


def with_outputs(graph: Path, names: Sequence[str]) -> bytes:
    """The graph with more outputs, without its external weights; their types are inferred when it is loaded."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(graph, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return model.SerializeToString()


class RecordingSession:
    """An `InferenceSession` of `with_outputs` that looks like one of the graph itself, and keeps what was added.

    Args:
        session: runs the graph with the added outputs, which come last.
        names: of these.
    """

    def __init__(self, session: Any, names: Sequence[str]) -> None:
        self._session, self._names = session, tuple(names)
        self._records: list[dict[str, NDArray[Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_outputs(self) -> list[Any]:
        """The graph's own outputs."""
        return self._session.get_outputs()[: -len(self._names)]

    def io_binding(self) -> Any:
        """A binding that gives the added outputs a place."""
        return _Binding(self._session.io_binding(), self._names)

    def run_with_iobinding(self, binding: Any) -> None:
        """Run, and keep copies of the added outputs."""
        self._session.run_with_iobinding(binding.inner)
        values = binding.inner.get_outputs()[: len(self._names)]
        self._records.append({name: value.numpy().copy() for name, value in zip(self._names, values, strict=True)})

    def take(self) -> list[dict[str, NDArray[Any]]]:
        """What was kept since the last call."""
        records, self._records = self._records, []
        return records


class _Binding:
    """A binding whose first outputs nobody sees but the recording session."""

    def __init__(self, inner: Any, names: Sequence[str]) -> None:
        self.inner, self._num_hidden = inner, len(names)
        for name in names:
            inner.bind_output(name, "cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def get_outputs(self) -> list[Any]:
        return self.inner.get_outputs()[self._num_hidden :]
