"""ONNX Runtime computing a graph of flavour `trt`: what a TensorRT engine means, on any machine."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from hlap_export.engines.base import Floats, Ints
from hlap_export.engines.ort_buffers import NUMPY_DTYPES, ONNX_DTYPES, Buffer
from hlap_export.engines.ort_decoder import LoadedDecoder
from hlap_export.engines.static_cache import WRITE_INDICES, Limits, Logits


@dataclass(frozen=True, kw_only=True, slots=True)
class OrtBuffers:
    """Keys and values of all cached layers in the CPU's memory."""

    tensors: tuple[Buffer, ...]

    def read(self) -> list[Floats]:
        """Copies [B, K, C, E] in float32."""
        return [tensor.read().astype(np.float32) for tensor in self.tensors]

    def write(self, arrays: Sequence[Floats]) -> None:
        """Fill the buffers from arrays [B, K, C, E]."""
        for tensor, array in zip(self.tensors, arrays, strict=True):
            tensor.write(array)


class OrtRunner(LoadedDecoder):
    """A loaded graph; past and present of a layer are the same buffer."""

    limits = Limits(batch=sys.maxsize, tokens=sys.maxsize, logits=sys.maxsize, capacity=None)

    def make_buffers(self, batch: int, capacity: int) -> OrtBuffers:
        """Zeros for every cached tensor."""
        return OrtBuffers(
            tensors=tuple(Buffer(shape, self.dtype, "cpu") for shape in self._cache_shapes(batch, capacity))
        )

    def run(self, buffers: Any, row: int | None, ids: Ints, write_indices: Ints, logits_indices: Ints) -> Logits:
        """Run new tokens [B, T] of all rows, or of one; returns logits [B, N, V]."""
        binding = self._session.io_binding()
        feeds = {"input_ids": ids, WRITE_INDICES: write_indices, "logits_indices": logits_indices}
        kept_alive = {name: np.ascontiguousarray(array, np.int64) for name, array in feeds.items()}
        for name, array in kept_alive.items():
            binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)
        logits = np.zeros((*logits_indices.shape, self.vocab_size), np.float32)
        binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)
        tensors = cast(OrtBuffers, buffers).tensors
        for past, present, tensor in zip(self._past_names, self._present_names, tensors, strict=True):
            shape, pointer = tensor.shape, tensor.pointer
            if row is not None:
                shape, pointer = (
                    (1, *shape[1:]),
                    pointer + row * math.prod(shape[1:]) * NUMPY_DTYPES[self.dtype].itemsize,
                )
            binding.bind_input(past, "cpu", 0, ONNX_DTYPES[self.dtype], shape, pointer)
            binding.bind_output(present, "cpu", 0, ONNX_DTYPES[self.dtype], shape, pointer)
        self._session.run_with_iobinding(binding)
        return logits


def is_static(session: Any) -> bool:
    """Whether a loaded graph is one of flavour `trt`."""
    return any(node.name == WRITE_INDICES for node in session.get_inputs())
