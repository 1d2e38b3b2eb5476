"""What every engine offers: a compiler from ONNX to files, and a session that runs those files.

A new engine is one file in this folder: a module that defines `BACKEND`, a value of the `Backend` protocol. Nothing
else changes; `build` and `open_session` find it by its name. The engine's own package (onnxruntime, tensorrt, ...) is
imported inside functions, so that the module can be imported, and say what is missing, where it isn't installed.

Shapes: B batch, T new tokens, P past tokens, S = P + T, K kv heads of the layer, E head dim, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hlap_export.artifacts import Manifest

GRAPH = "model.onnx"
"""The file that holds the graph, in an export and in engines that keep ONNX; weights lie beside it."""

ITEMSIZE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class KVLayer:
    """The shape of one layer's cache; layers without attention have none.

    Attributes:
        index: the layer, 0 at the embedding.
        num_kv_heads: K.
        head_dim: E.
    """

    index: int
    num_kv_heads: int
    head_dim: int


class KVCache(NamedTuple):
    """Keys and values of past tokens, in the session's own buffers: hand it back to the session that made it.

    Every decode step makes one: a tuple takes a third of a dataclass's time.

    Attributes:
        batch: B.
        length: P, padding included.
        buffers: key, value, key, value, ... in the order of `Session.kv_layers`; opaque outside the session.
    """

    batch: int
    length: int
    buffers: tuple[object, ...]


class Session(Protocol):
    """An engine that is loaded and ready; a context manager that frees its memory at the end."""

    @property
    def kv_layers(self) -> tuple[KVLayer, ...]:
        """The layers that keep a cache, from the embedding on."""
        ...

    @property
    def dtype(self) -> str:
        """The type of the cache: "float32", "float16" or "bfloat16"."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of logits for each token (V)."""
        ...

    @property
    def provider(self) -> str:
        """What runs the graph, as the engine itself names it."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads of one operator."""
        ...

    def empty_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """A cache of no tokens, to start a prefill with.

        Args:
            batch: B.
            capacity: tokens, padding included, that an engine with buffers of a fixed size makes room for at once; it
                then allocates nothing until there are more of them. None, or too few: it grows in steps.
        """
        ...

    def load_cache(self, arrays: Sequence[Floats], capacity: int | None = None) -> KVCache:
        """A cache from float arrays [B, K, P, E]: key, value, key, value, ... in the order of `kv_layers`."""
        ...

    def read_cache(self, cache: KVCache) -> tuple[NDArray[np.float32], ...]:
        """Copies of the cache's arrays [B, K, P, E], in the order of `load_cache`."""
        ...

    def run(
        self, input_ids: Ints, attention_mask: Ints, position_ids: Ints, past: KVCache, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], KVCache]:
        """Run T new tokens after P cached ones.

        Args:
            input_ids: [B, T].
            attention_mask: [B, S], 0 where a token is left padding.
            position_ids: [B, T], counted without the padding.
            past: an earlier call's cache, or `empty_cache`. An engine may update it in place: don't use it again
                except to repeat this very step.
            last_only: return the logits of the last token alone, all that generation needs; an engine that can
                doesn't compute the others.

        Returns:
            The logits [B, T, V] ([B, 1, V] with `last_only`) in float32, and the cache of all S tokens.
        """
        ...

    def close(self) -> None:
        """Free the engine's memory; the session can't be used afterwards."""
        ...

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Unavailable:
    """Why an engine can't be used on this machine, and what to do about it."""

    found: str
    fix: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What a compiler made.

    Attributes:
        parameters: settings that decide the bytes; they join the manifest's parameters.
        facts: what it counted (weight bytes, operators before and after), for the manifest.
    """

    parameters: dict[str, Any]
    facts: dict[str, Any]


class Backend(Protocol):
    """One engine that this package can build and run."""

    @property
    def name(self) -> str:
        """What `--engine` calls it."""
        ...

    def why_unavailable(self) -> Unavailable | None:
        """Why it can't build here; None if it can."""
        ...

    def why_not_runnable(self) -> Unavailable | None:
        """Why it can't run here what it builds; None if it can. Asked only where it can build."""
        ...

    def compile(self, onnx: Path, out: Path) -> Compiled:
        """Compile `onnx/model.onnx` into files in the folder `out`, which exists."""
        ...

    def open(self, engine: Path, *, threads: int) -> Session:
        """Load the files that `compile` wrote to the folder `engine`."""
        ...


@runtime_checkable
class Tunable(Protocol):
    """A backend that must know sizes beforehand, or can be told how to compile."""

    def tuned(self, options: Any, source: Manifest) -> Backend:
        """The backend that compiles `source` with these options, None for its defaults."""
        ...

    def parameters(self) -> dict[str, Any]:
        """Its options as JSON values."""
        ...


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def kv_bytes_per_token(layers: Sequence[KVLayer], itemsize_bytes: int) -> int:
    """Bytes that one more token of context costs, keys and values, all layers."""
    return sum(2 * layer.num_kv_heads * layer.head_dim * itemsize_bytes for layer in layers)
