"""Run a small graph on ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

RANDOM = np.random.default_rng(5)


def random(*shape: int) -> np.ndarray[Any, Any]:
    """Standard normal float32 numbers."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def run(model: ir.Model, **feeds: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The outputs, optimised as by default."""
    model.opset_imports.pop("hlap", None)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    proto = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, feeds)]


def with_weights(text: str, **weights: np.ndarray[Any, Any]) -> ir.Model:
    """The graph with some of its inputs made weights."""
    model = ir.from_onnx_text(text)
    for value in [value for value in model.graph.inputs if value.name in weights]:
        model.graph.inputs.remove(value)
        value.const_value = ir.Tensor(weights[str(value.name)], name=value.name)
        model.graph.register_initializer(value)
    return model


def operators(model: ir.Model) -> list[str]:
    """Operators in order."""
    return [node.op_type for node in model.graph]
