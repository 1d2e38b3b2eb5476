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
from typing import Any

from hlap_export.engines.base import GRAPH, Compiled, Session, Unavailable
from hlap_export.engines.ort_concatenated import ConcatenatedCacheSession
from hlap_export.engines.ort_in_place import NUM_KEPT, InPlaceSession
from hlap_export.engines.ort_static import OrtRunner, is_static
from hlap_export.engines.ort_tracing import RecordingSession, graph_values, with_outputs
from hlap_export.engines.static_cache import StaticCacheSession
from hlap_export.engines.tracing import GraphValue, TracedSession
from hlap_export.errors import ArtefactError, BackendMissing

DATA = "model.onnx.data"
PROVIDER = "CPUExecutionProvider"
LEVEL = "extended"

SPINNING = {
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "50",
    "session.force_spinning_stop": "1",
}
"""How worker threads wait: awake from one operator to the next, asleep as soon as a run ends.

A decode step has dozens of operators of microseconds each, and waking a thread takes longer than many of them: measured
with 2 threads on 2 cores, it takes 0.67 to 0.82 of the time that it takes with sleeping workers, a prefill of 128
tokens 0.77 to 0.96. The runtime's own default goes on waiting after a run, on cores that something else wants: another
process, or the other engine of a benchmark. Beside a process that takes a whole core, 50 microseconds at a time cost a
prefill 1.1 to 1.2 times its time, waiting without an end 1.5 times.
"""

# Folding may not write out a copy of a matrix: with tied embeddings the transposed head would double the largest
# weight on disk, and FusedMatMul reads the untransposed one as fast.
LARGEST_FOLDED_BYTES = 64 * 1024
# Smaller tensors stay inside the graph file.
SMALLEST_EXTERNAL_BYTES = 1024


class OnnxRuntimeBackend:
    """Compile and run with one of ONNX Runtime's providers, the CPU's here."""

    name = "onnxruntime"
    provider = PROVIDER
    load_level = "disable_all"

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

    def why_not_runnable(self) -> Unavailable | None:
        """Never: it compiles by loading."""
        return None

    def compile(self, onnx: Path, out: Path) -> Compiled:
        """Let ONNX Runtime optimise the graph for its CPU kernels and save it, weights beside it.

        Raises:
            ArtefactError: ONNX Runtime can't load the graph or has no CPU kernel for it.
        """
        options = session_options(threads=1)
        options.graph_optimization_level = _level(LEVEL)
        options.optimized_model_filepath = str(out / GRAPH)
        for key, value in {
            "session.optimized_model_external_initializers_file_name": DATA,
            "session.optimized_model_external_initializers_min_size_in_bytes": SMALLEST_EXTERNAL_BYTES,
            "optimization.constant_folding_max_output_size_in_bytes": LARGEST_FOLDED_BYTES,
        }.items():
            options.add_session_config_entry(key, str(value))
        _load(onnx / GRAPH, options, self.provider)
        return self.compiled(onnx / GRAPH, out / GRAPH)

    def compiled(self, source: Path, result: Path) -> Compiled:
        """What is said of a graph that became another."""
        before, after = _graph(source), _graph(result)
        return Compiled(
            parameters={"provider": self.provider, "optimization_level": LEVEL},
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
            BackendMissing: another provider than this one would run it.
        """
        return self._decoder(_load(engine / GRAPH, self._load_options(threads), self.provider), threads)

    def graph_values(self, engine: Path) -> tuple[GraphValue, ...]:
        """Every value of the optimised graph, in the order of computation."""
        return graph_values(engine / GRAPH)

    def open_traced(self, engine: Path, names: Sequence[str], *, threads: int) -> TracedSession:
        """Load the optimised graph so that it also hands out the values of these names."""
        options = self._load_options(threads)
        # The graph comes from memory; its weights still lie in the engine's folder.
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(engine))
        content = with_outputs(engine / GRAPH, names)
        session = RecordingSession(_load(engine / GRAPH, options, self.provider, content), names)
        return TracedSession(self._decoder(session, threads), session.take, pads_right=is_static(session))

    def _load_options(self, threads: int) -> Any:
        options = session_options(threads=threads)
        options.graph_optimization_level = _level(self.load_level)
        return options

    def _decoder(self, session: Any, threads: int) -> Session:
        if is_static(session):
            return StaticCacheSession(OrtRunner(session, provider=self.provider, threads=threads))
        keeps_in_place = NUM_KEPT in (optional.name for optional in session.get_overridable_initializers())
        kind = InPlaceSession if keeps_in_place else ConcatenatedCacheSession
        return kind(session, provider=self.provider, threads=threads)


BACKEND = OnnxRuntimeBackend()


def _onnxruntime() -> Any:
    return importlib.import_module("onnxruntime")


def _level(name: str) -> Any:
    levels = _onnxruntime().GraphOptimizationLevel
    return {"extended": levels.ORT_ENABLE_EXTENDED, "disable_all": levels.ORT_DISABLE_ALL}[name]


def session_options(*, threads: int) -> Any:
    """What every session has: so many threads of one operator, which wait as `SPINNING` says."""
    options = _onnxruntime().SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised: printed too, they would be told twice
    for key, value in SPINNING.items():
        options.add_session_config_entry(key, value)
    return options


def _load(graph: Path, options: Any, provider: str, content: bytes | None = None) -> Any:
    """A session of the graph in a file, or of `content` in its place."""
    try:
        # Without this flag ONNX Runtime would print and go on with another provider.
        session = _onnxruntime().InferenceSession(
            content or str(graph), options, providers=[provider], enable_fallback=0
        )
    except Exception as error:  # its exception classes derive from Exception alone
        if "NOT_IMPLEMENTED" in str(error):
            dtypes = ("float32", "float16") if provider == PROVIDER else ("float16",)
            raise ArtefactError(
                where=str(graph),
                expected=f"operators and dtypes that ONNX Runtime's {provider} implements ({', '.join(dtypes)})",
                found=str(error).split("NOT_IMPLEMENTED :")[-1].strip()[:300],
                fix=f"export with --dtype {dtypes[0]}",
            ) from error
        raise ArtefactError(
            where=str(graph),
            expected=f"a graph that ONNX Runtime's {provider} can load",
            found=" ".join(str(error).split())[:300],
            fix="the folder is damaged: make it again",
        ) from error
    _require_provider(session.get_providers(), provider, graph)
    return session


def _require_provider(running: Sequence[str], provider: str, graph: Path) -> None:
    """Refuse a session on another provider; behind each there is the CPU's, for operators on shapes."""
    if running[0] != provider or not set(running) <= {provider, PROVIDER}:
        raise BackendMissing(
            where=str(graph),
            expected=f"a session on {provider}",
            found=f"one on {', '.join(running)}",
            fix="run `hlap-export doctor`: it says what this provider is missing here",
        )


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
