"""Inputs for `polygraphy run`: a prompt of 4 tokens and a cache that holds nothing yet, for an export of any flavour.

MODEL=onnx/model.onnx polygraphy run onnx/model.onnx --onnxrt --data-loader-script examples/polygraphy/inputs.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

TOKENS, CAPACITY = 4, 64
SIZES = {
    "batch": 1,
    "sequence": TOKENS,
    "past_sequence": 0,
    "past_sequence + sequence": TOKENS,
    "mask_columns": TOKENS,  # flavour ort
    "num_logits": TOKENS,
}
CONTENT = {
    "input_ids": lambda shape: 1 + np.arange(shape[-1])[None],
    "attention_mask": np.ones,
    "position_ids": lambda shape: np.arange(shape[-1])[None],
    "write_indices": np.zeros,
    "logits_indices": lambda shape: np.arange(shape[-1])[None],
}


def load_data() -> Iterator[dict[str, Any]]:
    """One set of inputs, by name."""
    graph = onnx.load(os.environ["MODEL"], load_external_data=False).graph
    yield {value.name: _array(value) for value in graph.input}


def _array(value: onnx.ValueInfoProto) -> np.ndarray[Any, Any]:
    dims = value.type.tensor_type.shape.dim
    shape = tuple(dim.dim_value or SIZES.get(dim.dim_param, CAPACITY) for dim in dims)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return np.ascontiguousarray(CONTENT.get(value.name, np.zeros)(shape), dtype=dtype)
