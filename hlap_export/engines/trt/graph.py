"""The ONNX file as the compiler takes it: the cache's capacity is a number, the weights stay in their file."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlap_export.engines.trt.phases import GraphInput

CAPACITY = "capacity"


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """A graph that is ready to be parsed.

    Attributes:
        path: the file; weights are found beside it.
        content: the serialised model, capacity filled in, weights outside.
        inputs: in order.
    """

    path: Path
    content: bytes
    inputs: tuple[GraphInput, ...]


def read_graph(path: Path, *, capacity: int) -> Graph:
    """Read a graph of flavour `trt`; its weights aren't."""
    model = importlib.import_module("onnx").load(path, load_external_data=False)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == CAPACITY:
                dim.dim_value = capacity
    return Graph(
        path=path,
        content=model.SerializeToString(),
        inputs=tuple(GraphInput(name=value.name, dims=_dims(value)) for value in model.graph.input),
    )


def _dims(value: Any) -> tuple[int | str, ...]:
    return tuple(dim.dim_param or int(dim.dim_value) for dim in value.type.tensor_type.shape.dim)
