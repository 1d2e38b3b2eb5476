"""A session whose graph returns past and new keys as one larger tensor, step after step: flavour `portable`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines.base import Floats, Ints, KVCache
from hlap_export.engines.ort_buffers import NUMPY_DTYPES
from hlap_export.engines.ort_decoder import LoadedDecoder


class ConcatenatedCacheSession(LoadedDecoder):
    """A loaded graph; the cache stays in ONNX Runtime's own buffers from step to step."""

    def empty_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """A cache of no tokens; it is concatenated, so that no capacity can be set aside."""
        return self.load_cache([np.zeros(shape, dtype=np.float32) for shape in self._cache_shapes(batch, 0)])

    def load_cache(self, arrays: Sequence[Floats], capacity: int | None = None) -> KVCache:
        """A cache from arrays [B, K, P, E]: key, value, ... in the order of `kv_layers`; rounded to `dtype`."""
        batch, _, length, _ = arrays[0].shape
        shapes = self._cache_shapes(batch, length)
        assert [array.shape for array in arrays] == shapes, "one [B, K, P, E] key and value for each cached layer"
        buffers = tuple(_value(array.astype(NUMPY_DTYPES[self.dtype], order="C")) for array in arrays)
        return KVCache(batch=batch, length=length, buffers=buffers)

    def read_cache(self, cache: KVCache) -> tuple[NDArray[np.float32], ...]:
        """Copies of the cache's arrays [B, K, P, E] in float32."""
        return tuple(np.array(cast(Any, buffer).numpy(), dtype=np.float32) for buffer in cache.buffers)

    def run(
        self, input_ids: Ints, attention_mask: Ints, position_ids: Ints, past: KVCache, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], KVCache]:
        """Run T new tokens [B, T] after the P of `past`; returns logits [B, T, V] or the last, and the cache."""
        binding = self._session.io_binding()
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        for name, array in tokens.items():
            binding.bind_ortvalue_input(name, _value(np.ascontiguousarray(array, dtype=np.int64)))
        for name, buffer in zip(self._past_names, past.buffers, strict=True):
            binding.bind_ortvalue_input(name, buffer)
        for name in ("logits", *self._present_names):
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        batch, length = attention_mask.shape
        logits_BTV = logits.numpy()[:, -1:] if last_only else logits.numpy()
        # A copy: the buffer belongs to ONNX Runtime and goes back to its arena with the OrtValue.
        return np.array(logits_BTV, dtype=np.float32), KVCache(batch=batch, length=length, buffers=tuple(present))


def _value(array: NDArray[Any]) -> Any:
    return importlib.import_module("onnxruntime").OrtValue.ortvalue_from_numpy(array)
