"""ONNX Runtime on the CPU: the graph is optimised once, at build time, and loaded as it is.

Level "extended" is the highest whose result holds on any x86-64 machine. "layout" and "all" add blocked layouts for
convolutions, chosen by the building CPU's vector width; on decoder graphs they gave byte-identical files and, applied
a second time at load, no speed. So sessions load with optimisation off: what was verified is what runs.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines.base import GRAPH, Compiled, Floats, Ints, KVCache, KVLayer, Session, Unavailable
from hlap_export.errors import ArtefactError

DATA = "model.onnx.data"
PROVIDER = "CPUExecutionProvider"
LEVEL = "extended"

# Folding may not write out a copy of a matrix: with tied embeddings the transposed head would double the largest
# weight on disk, and FusedMatMul reads the untransposed one as fast.
LARGEST_FOLDED_BYTES = 64 * 1024
# Smaller tensors stay inside the graph file.
SMALLEST_EXTERNAL_BYTES = 1024

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


class OnnxRuntimeBackend:
    """Compile and run with ONNX Runtime's CPU provider."""

    name = "onnxruntime"

    def why_unavailable(self) -> Unavailable | None:
        """Say so when onnxruntime can't be imported."""
        try:
            _onnxruntime()
        except ImportError as error:
            installed = importlib.util.find_spec("onnxruntime") is not None
            return Unavailable(
                found=f"onnxruntime fails to import: {error}" if installed else "onnxruntime isn't installed",
                fix="pip install 'hlap-export[cpu]' (or pip install onnxruntime)",
            )
        return None

    def compile(self, onnx: Path, out: Path) -> Compiled:
        """Let ONNX Runtime optimise the graph for its CPU kernels and save it, weights beside it.

        Raises:
            ArtefactError: ONNX Runtime can't load the graph or has no CPU kernel for it.
        """
        options = _options(threads=1)
        options.graph_optimization_level = _level(LEVEL)
        options.optimized_model_filepath = str(out / GRAPH)
        for key, value in {
            "session.optimized_model_external_initializers_file_name": DATA,
            "session.optimized_model_external_initializers_min_size_in_bytes": SMALLEST_EXTERNAL_BYTES,
            "optimization.constant_folding_max_output_size_in_bytes": LARGEST_FOLDED_BYTES,
        }.items():
            options.add_session_config_entry(key, str(value))
        _load(onnx / GRAPH, options)
        before, after = _graph(onnx / GRAPH), _graph(out / GRAPH)
        return Compiled(
            parameters={"provider": PROVIDER, "optimization_level": LEVEL},
            facts={
                "op_counts_before": _op_counts(before),
                "op_counts": _op_counts(after),
                "weight_bytes_before": _weight_bytes(before),
                "weight_bytes": _weight_bytes(after),
            },
        )

    def open(self, engine: Path, *, threads: int) -> Session:
        """Load the optimised graph as it is.

        Raises:
            ArtefactError: the graph or its weights can't be loaded.
        """
        options = _options(threads=threads)
        options.graph_optimization_level = _level("disable_all")
        return OnnxRuntimeSession(_load(engine / GRAPH, options), threads=threads)


class OnnxRuntimeSession:
    """A loaded graph; the cache stays in ONNX Runtime's own buffers from step to step."""

    def __init__(self, session: Any, *, threads: int) -> None:
        self._session: Any = session
        self._ort = _onnxruntime()
        self.threads = threads
        self.provider = PROVIDER
        caches = [node for node in session.get_inputs() if node.name.startswith("past_key_values.")]
        self.kv_layers = tuple(_kv_layer(node) for node in caches if node.name.endswith(".key"))
        self._past_names = tuple(
            f"past_key_values.{layer.index}.{part}" for layer in self.kv_layers for part in ("key", "value")
        )
        self._output_names = ("logits", *(name.replace("past_key_values", "present") for name in self._past_names))
        self.dtype = _DTYPES[caches[0].type]
        self.vocab_size = int(session.get_outputs()[0].shape[-1])

    def empty_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """A cache of no tokens; it is concatenated, so that no capacity can be set aside."""
        return self.load_cache([np.zeros(shape, dtype=np.float32) for shape in self._cache_shapes(batch, 0)])

    def load_cache(self, arrays: Sequence[Floats], capacity: int | None = None) -> KVCache:
        """A cache from arrays [B, K, P, E]: key, value, ... in the order of `kv_layers`; rounded to `dtype`."""
        batch, _, length, _ = arrays[0].shape
        shapes = self._cache_shapes(batch, length)
        assert [array.shape for array in arrays] == shapes, "one [B, K, P, E] key and value for each cached layer"
        buffers = tuple(self._value(array.astype(self.dtype, order="C")) for array in arrays)
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
            binding.bind_ortvalue_input(name, self._value(np.ascontiguousarray(array, dtype=np.int64)))
        for name, buffer in zip(self._past_names, past.buffers, strict=True):
            binding.bind_ortvalue_input(name, buffer)
        for name in self._output_names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        logits, *present = binding.get_outputs()
        batch, length = attention_mask.shape
        logits_BTV = logits.numpy()[:, -1:] if last_only else logits.numpy()
        # A copy: the buffer belongs to ONNX Runtime and goes back to its arena with the OrtValue.
        return np.array(logits_BTV, dtype=np.float32), KVCache(batch=batch, length=length, buffers=tuple(present))

    def close(self) -> None:
        """Free the weights and the arena."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cache_shapes(self, batch: int, length: int) -> list[tuple[int, int, int, int]]:
        return [(batch, layer.num_kv_heads, length, layer.head_dim) for layer in self.kv_layers for _ in range(2)]

    def _value(self, array: NDArray[Any]) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array)


BACKEND = OnnxRuntimeBackend()


def _onnxruntime() -> Any:
    return importlib.import_module("onnxruntime")


def _level(name: str) -> Any:
    levels = _onnxruntime().GraphOptimizationLevel
    return {"extended": levels.ORT_ENABLE_EXTENDED, "disable_all": levels.ORT_DISABLE_ALL}[name]


def _options(*, threads: int) -> Any:
    options = _onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Idle workers would spin on cores that something else wants: another process, or the other engine of a benchmark.
    # Measured with 2 threads on 2 cores: spinning made a prefill of 128 tokens twice as slow (22 ms against 11), for
    # 0.1 ms less in a lone decode step.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _load(graph: Path, options: Any) -> Any:
    try:
        # Without this flag ONNX Runtime would print and go on with another provider.
        session = _onnxruntime().InferenceSession(str(graph), options, providers=[PROVIDER], enable_fallback=0)
    except Exception as error:  # its exception classes derive from Exception alone
        if "NOT_IMPLEMENTED" in str(error):
            raise ArtefactError(
                where=str(graph),
                expected=f"operators and dtypes that ONNX Runtime's {PROVIDER} implements (float32, float16)",
                found=str(error).split("NOT_IMPLEMENTED :")[-1].strip()[:300],
                fix="export with --dtype float32",
            ) from error
        raise ArtefactError(
            where=str(graph),
            expected=f"a graph that ONNX Runtime's {PROVIDER} can load",
            found=" ".join(str(error).split())[:300],
            fix="the folder is damaged: make it again",
        ) from error
    running = session.get_providers()
    assert running == [PROVIDER], f"asked for {PROVIDER}, got {running}"
    return session


def _kv_layer(node: Any) -> KVLayer:
    """The static part of `past_key_values.{i}.key` [batch, K, past_sequence, E]."""
    _, num_kv_heads, _, head_dim = node.shape
    return KVLayer(index=int(node.name.split(".")[1]), num_kv_heads=int(num_kv_heads), head_dim=int(head_dim))


def _graph(path: Path) -> Any:
    onnx = importlib.import_module("onnx")
    return onnx.load(path, load_external_data=False).graph


def _op_counts(graph: Any) -> dict[str, int]:
    counts = Counter(f"{node.domain}.{node.op_type}" if node.domain else str(node.op_type) for node in graph.node)
    return dict(sorted(counts.items()))


def _weight_bytes(graph: Any) -> int:
    helper = importlib.import_module("onnx.helper")
    return sum(
        math.prod(tensor.dims) * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        for tensor in graph.initializer
    )
