"""Run plans on a GPU: one context for each phase, caches that stay where they are, decode as one recorded piece."""

from __future__ import annotations

import weakref
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from hlap_export.artifacts import Manifest, read_manifest
from hlap_export.engines.base import GRAPH, Floats, Ints, KVLayer, Session
from hlap_export.engines.static_cache import WRITE_INDICES, Buffers, Limits, Logits, StaticCacheSession
from hlap_export.engines.trt.gpu import DeviceTensor, Recording, Stream
from hlap_export.engines.trt.library import TENSORRT, Library, Log, open_log
from hlap_export.engines.trt.phases import PhaseName
from hlap_export.engines.trt.rtx import execution_context
from hlap_export.errors import ArtefactError

if TYPE_CHECKING:
    import tensorrt

TOKENS: tuple[str, ...] = ("input_ids", WRITE_INDICES, "logits_indices")
LOGITS = "logits"
ALIGNMENT = 256
"""Bytes: the library takes no tensor whose address isn't a multiple."""


def open_plans(library: Library, engine: Path, files: dict[str, tuple[PhaseName, ...]], *, threads: int) -> Session:
    """A session of the plans in an engine's folder.

    Args:
        library: that built them.
        engine: the folder.
        files: each plan's phases, in the order of its profiles.
        threads: reported as they are; the GPU does the work.

    Raises:
        ArtefactError: the library can't load a plan on this GPU.
    """
    log, stream = open_log(library), Stream()
    facts = _Facts.of(read_manifest(engine, kind="engine"), threads)
    plans = {name: _load(library, engine, name, log) for name in files}
    contexts: dict[PhaseName, tensorrt.IExecutionContext] = {
        phase: _context(execution_context(library, plans[name], records=not facts.is_streamed), profile, stream, log)
        for name, phases in files.items()
        for profile, phase in enumerate(phases)
    }
    return StaticCacheSession(PlanRunner(library, log, stream, contexts, facts=facts))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Facts:
    """What the manifest says of the engine."""

    kv_layers: tuple[KVLayer, ...]
    dtype: str
    vocab_size: int
    provider: str
    threads: int
    limits: Limits
    is_streamed: bool
    """Whether weights come from memory while it runs: such work can't be recorded."""

    @classmethod
    def of(cls, manifest: Manifest, threads: int) -> _Facts:
        facts, sizes = manifest.facts, manifest.parameters
        return cls(
            kv_layers=tuple(KVLayer(**layer) for layer in facts["kv_layers"]),
            dtype=str(sizes["dtype"]),
            vocab_size=int(facts["vocab_size"]),
            provider=str(facts["provider"]),
            threads=threads,
            limits=Limits(
                batch=sizes["max_batch"],
                tokens=sizes["max_prompt"],
                logits=sizes["max_logits"],
                capacity=sizes["capacity"],
            ),
            is_streamed=bool(sizes.get("weight_streaming")),
        )


class DeviceBuffers:
    """Keys and values of all cached layers in the GPU's memory; freed with the last cache that uses them."""

    def __init__(self, stream: Stream, names: Sequence[str], shapes: Sequence[tuple[int, ...]], dtype: str) -> None:
        self._new = lambda: DeviceBuffers(stream, names, [(1, *shape[1:]) for shape in shapes], dtype)
        self._apart: DeviceBuffers | None = None
        self.tensors: dict[str, DeviceTensor] = {}
        for name, shape in zip(names, shapes, strict=True):  # one by one: where memory ends, those before are freed
            self.tensors[name] = DeviceTensor(stream, shape, dtype)

    def read(self) -> list[Floats]:
        """Copies [B, K, C, E] in float32."""
        return [tensor.read(tensor.shape).astype(np.float32) for tensor in self.tensors.values()]

    def write(self, arrays: Sequence[Floats]) -> None:
        """Fill the buffers from arrays [B, K, C, E]."""
        for tensor, array in zip(self.tensors.values(), arrays, strict=True):
            tensor.write(array)

    @property
    def has_aligned_rows(self) -> bool:
        """Whether every row begins where a tensor may begin."""
        return all(tensor.row_bytes % ALIGNMENT == 0 for tensor in self.tensors.values())

    @contextmanager
    def row_apart(self, row: int) -> Generator[DeviceBuffers]:
        """Buffers of one row alone, which is copied there and, when the block ends, back."""
        self._apart = apart = self._apart or self._new()
        for name, tensor in self.tensors.items():
            apart.tensors[name].copy_row(0, tensor, row)
        yield apart
        for name, tensor in self.tensors.items():
            tensor.copy_row(row, apart.tensors[name], 0)

    def __del__(self) -> None:
        for tensor in self.tensors.values():
            tensor.close()


class PlanRunner:
    """Contexts of loaded plans, and the memory for tokens and logits of the largest call."""

    def __init__(
        self,
        library: Library,
        log: Log,
        stream: Stream,
        contexts: dict[PhaseName, tensorrt.IExecutionContext],
        *,
        facts: _Facts,
    ) -> None:
        self.kv_layers, self.dtype, self.vocab_size = facts.kv_layers, facts.dtype, facts.vocab_size
        self.provider, self.threads, self.limits = facts.provider, facts.threads, facts.limits
        self._log = log  # the library's objects must not outlive its logger
        self._stream, self._contexts = stream, contexts
        # TensorRT-RTX records by itself.
        self._records = library == TENSORRT and not facts.is_streamed
        self._bound: tuple[weakref.ref[DeviceBuffers], int | None] | None = None
        self._recording: Recording | None = None
        self._past_names = [
            f"past_key_values.{layer.index}.{part}" for layer in self.kv_layers for part in ("key", "value")
        ]
        batch, tokens, logits = self.limits.batch, self.limits.tokens, self.limits.logits
        sizes = {"input_ids": (batch, tokens), WRITE_INDICES: (batch,), "logits_indices": (batch, logits)}
        self._tokens = {name: DeviceTensor(stream, sizes[name], "int64") for name in TOKENS}
        self._logits = DeviceTensor(stream, (batch, logits, self.vocab_size), "float32")

    def make_buffers(self, batch: int, capacity: int) -> DeviceBuffers:
        """Zeros for every cached tensor."""
        shapes = [(batch, layer.num_kv_heads, capacity, layer.head_dim) for layer in self.kv_layers for _ in range(2)]
        return DeviceBuffers(self._stream, self._past_names, shapes, self.dtype)

    def run(self, buffers: Buffers, row: int | None, ids: Ints, write_indices: Ints, logits_indices: Ints) -> Logits:
        """Run new tokens [B, T] of all rows, or of one; returns logits [B, N, V]."""
        whole = cast(DeviceBuffers, buffers)
        if row is None or whole.has_aligned_rows:
            return self._run(whole, row, ids, write_indices, logits_indices)
        with whole.row_apart(row) as apart:
            return self._run(apart, None, ids, write_indices, logits_indices)

    def _run(
        self, buffers: DeviceBuffers, row: int | None, ids: Ints, write_indices: Ints, logits_indices: Ints
    ) -> Logits:
        given: dict[str, Ints] = dict(zip(TOKENS, (ids, write_indices, logits_indices), strict=True))
        for name, array in given.items():
            self._tokens[name].write(array)
        if ids.shape[1] == 1:
            self._step(buffers, row, given)
        else:
            self._enqueue(self._bind("prefill", buffers, row, given))
        return self._logits.read((*logits_indices.shape, self.vocab_size))

    def _step(self, buffers: DeviceBuffers, row: int | None, given: dict[str, Ints]) -> None:
        """One token for every row: enqueued the first time, which may allocate, then recorded, then launched.

        A recording holds until its context is told other shapes or addresses, so there is one, of the last cache.
        """
        bound, context = (weakref.ref(buffers), row), self._contexts["decode"]
        if bound != self._bound:
            self._forget_recording()
            self._enqueue(self._bind("decode", buffers, row, given))
            self._bound = bound
        elif not self._records:
            self._enqueue(context)
        else:
            self._recording = self._recording or self._stream.record(lambda: self._enqueue(context))
            self._recording.launch()

    def _forget_recording(self) -> None:
        recording, self._recording, self._bound = self._recording, None, None
        if recording is not None:
            recording.close()

    def _bind(
        self, phase: PhaseName, buffers: DeviceBuffers, row: int | None, given: dict[str, Ints]
    ) -> tensorrt.IExecutionContext:
        """Tell a phase's context the shapes and addresses; past and present are the same buffer."""
        context = self._contexts[phase]

        def bind(name: str, pointer: int, shape: tuple[int, ...] | None = None) -> None:
            if shape is not None:
                self._require(context.set_input_shape(name, shape), f"an engine that takes {name} of shape {shape}")
            self._require(context.set_tensor_address(name, pointer), f"an engine that has {name}")

        for name, array in given.items():
            bind(name, self._tokens[name].pointer, array.shape)
        for name, tensor in buffers.tensors.items():
            shape, pointer = tensor.shape, tensor.pointer
            if row is not None:
                shape, pointer = (1, *shape[1:]), tensor.address(row)
            bind(name, pointer, shape)
            bind(name.replace("past_key_values", "present"), pointer)
        bind(LOGITS, self._logits.pointer)
        return context

    def _enqueue(self, context: tensorrt.IExecutionContext) -> None:
        self._require(context.execute_async_v3(self._stream.handle), "a step that runs")

    def _require(self, ok: bool, expected: str) -> None:
        _require(ok, self._log, where=self.provider, expected=expected)

    def close(self) -> None:
        """Free the contexts and the memory of a call; caches free their own."""
        self._stream.wait()
        self._forget_recording()
        self._contexts.clear()
        for tensor in (*self._tokens.values(), self._logits):
            tensor.close()


def _load(library: Library, engine: Path, name: str, log: Log) -> tensorrt.ICudaEngine:
    trt = library.load()
    parameters, runtime = read_manifest(engine, kind="engine").parameters, trt.Runtime(log.logger)
    # A plan for later versions brings code of its own, which this package built.
    runtime.engine_host_code_allowed = bool(parameters.get("version_compatible"))
    # A stripped plan of another library version, or of another GPU, gives None and a message.
    plan = cast("tensorrt.ICudaEngine | None", runtime.deserialize_cuda_engine((engine / name).read_bytes()))
    if plan is None:
        raise _unloadable(library, engine / name, log)
    if parameters.get("strip_weights"):
        _fill_weights(library, plan, engine, log)
    if parameters.get("weight_streaming"):
        plan.weight_streaming_budget_v2 = plan.get_weight_streaming_automatic_budget()
    return plan


def _fill_weights(library: Library, plan: tensorrt.ICudaEngine, engine: Path, log: Log) -> None:
    """Give a stripped plan the weights of the graph beside it."""
    trt = library.load()
    refitter = trt.Refitter(plan, log.logger)
    parser = trt.OnnxParserRefitter(refitter, log.logger)
    if not (parser.refit_from_file(str(engine / GRAPH)) and refitter.refit_cuda_engine()):
        raise _unloadable(library, engine / GRAPH, log)


def _context(
    context: tensorrt.IExecutionContext | None, profile: int, stream: Stream, log: Log
) -> tensorrt.IExecutionContext:
    """A context that has switched to a profile."""
    switched = context is not None and context.set_optimization_profile_async(profile, stream.handle)
    _require(switched, log, where="the engine", expected=f"a context of profile {profile}, for which the GPU has room")
    stream.wait()
    assert context is not None
    return context


def _unloadable(library: Library, path: Path, log: Log) -> ArtefactError:
    return _refused(log, where=str(path), expected=f"a plan that {library.compiler} can load on this GPU")


def _require(ok: bool, log: Log, *, where: str, expected: str) -> None:
    """Most of the library's calls return whether they did it, and only its log says why not."""
    if not ok:
        raise _refused(log, where=where, expected=expected)


def _refused(log: Log, *, where: str, expected: str) -> ArtefactError:
    return ArtefactError(
        where=where,
        expected=expected,
        found=" ".join((log.problems or ["no reason"])[-1].split())[:300],
        fix="build the engine again on this machine",
    )
