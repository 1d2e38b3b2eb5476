"""Engines of the tiny models, and a session that isn't one: made once per test run, read by many tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from hlap_export.artifacts import read_manifest, write_manifest
from hlap_export.engines import KVCache, KVLayer, build
from tests.export.exports import TinyExport, TinyExports


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyEngine:
    """A tiny checkpoint, its export and its engine."""

    checkpoint: Path
    export: Path
    folder: Path


class TinyEngines:
    """Makes an engine when it is first asked for, below `root`, from one of `exports`."""

    def __init__(self, root: Path, exports: TinyExports) -> None:
        self.root = root
        self._exports = exports
        self._made: dict[tuple[str, ...], TinyEngine] = {}

    def get(
        self, family: str = "llama", plan: str = "mixed", dtype: str = "float32", flavour: str = "portable"
    ) -> TinyEngine:
        key = (family, plan, dtype, flavour)
        if key not in self._made:
            source: TinyExport = self._exports.get(*key)
            folder = self.root / "-".join(("engine", *key))
            build(source.folder, folder)
            self._made[key] = TinyEngine(checkpoint=source.checkpoint, export=source.folder, folder=folder)
        return self._made[key]


def altered(folder: Path, copy: Path, change: Callable[[Path], object]) -> Path:
    """A copy of an artefact after `change(copy)`, its manifest rewritten: as if it had been made like that."""
    shutil.copytree(folder, copy)
    manifest = read_manifest(copy)
    change(copy)
    write_manifest(
        copy, kind=manifest.kind, parameters=manifest.parameters, inputs=manifest.inputs, facts=manifest.facts
    )
    return copy


class FakeSession:
    """Logits by a function of ids and positions; the cache remembers how many tokens went in, and nothing else.

    Args:
        logits: (ids [B, T], positions [B, T]) -> logits [B, T, V].
        vocab_size: V.
        kv_layers: what the session claims to cache.
    """

    provider = "fake"
    dtype = "float32"
    threads = 1

    def __init__(
        self,
        logits: Callable[[Any, Any], Any],
        *,
        vocab_size: int,
        kv_layers: tuple[KVLayer, ...] = (KVLayer(index=0, num_kv_heads=1, head_dim=2),),
    ) -> None:
        self._logits = logits
        self.vocab_size = vocab_size
        self.kv_layers = kv_layers
        self.seen: list[tuple[int, int, int]] = []
        """(batch, new tokens, past tokens) of each call."""

    def empty_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        return KVCache(batch=batch, length=0, buffers=())

    def load_cache(self, arrays: Sequence[Any], capacity: int | None = None) -> KVCache:
        return KVCache(batch=arrays[0].shape[0], length=arrays[0].shape[2], buffers=tuple(arrays))

    def read_cache(self, cache: KVCache) -> tuple[Any, ...]:
        return tuple(cache.buffers)

    def run(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, past: KVCache, *, last_only: bool = False
    ) -> tuple[Any, KVCache]:
        batch, tokens = input_ids.shape
        assert attention_mask.shape == (batch, past.length + tokens)
        assert position_ids.shape == input_ids.shape
        self.seen.append((batch, tokens, past.length))
        logits = np.asarray(self._logits(input_ids, position_ids), dtype=np.float32)
        return logits[:, -1:] if last_only else logits, KVCache(batch=batch, length=past.length + tokens, buffers=())

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
