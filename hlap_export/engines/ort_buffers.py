"""Memory that ONNX Runtime reads and writes and that outlives a run, on the CPU or a GPU."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
ONNX_DTYPES = {"float32": 1, "float16": 10, "bfloat16": 16}
"""TensorProto's numbers: the runtime's interface has no NumPy type for bfloat16."""


class Buffer:
    """A tensor of fixed shape, zeros at first.

    Args:
        shape: static.
        dtype: "float32", "float16" or "bfloat16".
        device: "cpu" or "cuda".
    """

    def __init__(self, shape: Sequence[int], dtype: str, device: str) -> None:
        self.shape, self.dtype, self.device = tuple(shape), dtype, device
        self._host: NDArray[Any] | None = None
        self._value: Any = None
        if device == "cpu":
            # NumPy asks for huge pages itself. Beginning with a cache line or a huge page was measured to make decoding
            # no faster, and 1 to 3 % slower from 8,192 tokens on.
            self._host = np.zeros(self.shape, NUMPY_DTYPES[dtype])
            self.pointer = self._host.ctypes.data
        else:
            make = importlib.import_module("onnxruntime").OrtValue.ortvalue_from_shape_and_type
            self._value = make(self.shape, ONNX_DTYPES[dtype], device)
            self.pointer = int(self._value.data_ptr())
            self.write(np.zeros(shape, NUMPY_DTYPES[dtype]))

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array of the buffer's shape and dtype into it."""
        if self._host is not None:
            self._host[...] = array
        else:
            self._value.update_inplace(self._on_host(np.ascontiguousarray(array)))

    def read(self) -> NDArray[Any]:
        """The content: on the CPU the memory itself, from elsewhere a copy."""
        if self._host is not None:
            return self._host
        copy = np.empty(self.shape, NUMPY_DTYPES[self.dtype])
        self._on_host(copy).update_inplace(self._value)
        return copy

    def _on_host(self, array: NDArray[Any]) -> Any:
        """The array's own memory as ONNX Runtime's value."""
        make = importlib.import_module("onnxruntime").OrtValue.ortvalue_from_numpy_with_onnx_type
        return make(array.view(np.uint16) if self.dtype == "bfloat16" else array, ONNX_DTYPES[self.dtype])
