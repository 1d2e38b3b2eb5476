"""A session whose graph writes each row's tokens to the front of buffers of a fixed size: flavour `trt`.

The graph has no mask: `write_indices` tells how many tokens a row's cache holds, `logits_indices` which of the new ones
have logits. So each row keeps its real tokens alone. New tokens of rows of different lengths are padded on the right:
what padding writes lies behind the row's end, where nobody looks, and the next tokens overwrite it.

What computes is a `Runner`: ONNX Runtime's here, TensorRT's on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines.base import Floats, Ints, KVCache, KVLayer
from hlap_export.errors import ArtefactError

Logits = NDArray[np.float32]
WRITE_INDICES = "write_indices"
"""The input that tells a graph of this kind from others."""

GROWN_TO = 64
"""Tokens: what a cache without a fixed capacity grows to multiples of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The most of everything in one call.

    Attributes:
        batch: rows.
        tokens: new tokens of a row.
        logits: tokens of a row that have logits.
        capacity: tokens that a row's cache holds; None where buffers may have any size.
    """

    batch: int
    tokens: int
    logits: int
    capacity: int | None


class Buffers(Protocol):
    """Keys and values of all cached layers, for `batch` rows of `capacity` tokens."""

    def read(self) -> list[Floats]:
        """Copies [B, K, C, E] in float32: key, value, key, value, ..."""
        ...

    def write(self, arrays: Sequence[Floats]) -> None:
        """Fill the buffers from arrays [B, K, C, E]."""
        ...


class Runner(Protocol):
    """What computes the graph."""

    @property
    def kv_layers(self) -> tuple[KVLayer, ...]:
        """The layers that keep a cache."""
        ...

    @property
    def dtype(self) -> str:
        """Of the cache."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def provider(self) -> str:
        """What runs the graph, in words."""
        ...

    @property
    def threads(self) -> int:
        """CPU threads of one operator."""
        ...

    @property
    def limits(self) -> Limits:
        """What one call may ask for."""
        ...

    def make_buffers(self, batch: int, capacity: int) -> Buffers:
        """Zeros."""
        ...

    def run(self, buffers: Buffers, row: int | None, ids: Ints, write_indices: Ints, logits_indices: Ints) -> Logits:
        """Run new tokens `ids` [B, T] of all rows, or of one; returns logits [B, N, V] of `logits_indices` [B, N]."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class StaticCacheSession:
    """A loaded graph with caches of its own making; a context manager that frees them."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.kv_layers = runner.kv_layers
        self.dtype = runner.dtype
        self.vocab_size = runner.vocab_size
        self.provider = runner.provider
        self.threads = runner.threads

    def empty_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """A cache of no tokens with room for `capacity` of them, or for as many as the engine was built for."""
        return KVCache(batch=batch, length=0, buffers=(_Store(self._runner, batch, capacity or 0),))

    def load_cache(self, arrays: Sequence[Floats], capacity: int | None = None) -> KVCache:
        """A cache from arrays [B, K, P, E]: key, value, ... in the order of `kv_layers`; rounded to `dtype`."""
        batch, _, length, _ = arrays[0].shape
        store = _Store(self._runner, batch, max(capacity or 0, length))
        store.fill(arrays)
        store.append(0, np.ones((batch, length), bool))
        return KVCache(batch=batch, length=length, buffers=(store,))

    def read_cache(self, cache: KVCache) -> tuple[NDArray[np.float32], ...]:
        """Copies of the cache's arrays [B, K, P, E] in float32, zeros where there was padding."""
        store = _store_of(cache)
        is_real = store.is_real[:, : cache.length]
        copies: list[NDArray[np.float32]] = []
        for content in store.buffers.read():
            batch, num_kv_heads, _, head_dim = content.shape
            copy = np.zeros((batch, num_kv_heads, cache.length, head_dim), np.float32)
            for row, columns in enumerate(is_real):
                copy[row][:, columns] = content[row, :, : np.count_nonzero(columns)]
            copies.append(copy)
        return tuple(copies)

    def run(
        self, input_ids: Ints, attention_mask: Ints, position_ids: Ints, past: KVCache, *, last_only: bool = False
    ) -> tuple[Logits, KVCache]:
        """Run T new tokens [B, T] after the P of `past`, in its buffers; returns logits [B, T, V] or the last.

        `position_ids` aren't read: a token's position is its place in the row's cache.
        """
        store, (batch, new) = _store_of(past), input_ids.shape
        store.reserve(past.length + new)
        before, counts = store.append(past.length, attention_mask[:, past.length :] != 0)
        logits = np.zeros((batch, 1 if last_only else new, self.vocab_size), np.float32)
        if batch <= self._runner.limits.batch and int((before + counts.max()).max()) <= store.capacity:
            self._run_rows(store, None, input_ids, before, counts, logits)
        else:  # too many rows for one call, or padding of a short row would be written beyond its buffer
            for row in np.flatnonzero(counts):
                one = slice(row, row + 1)
                self._run_rows(store, int(row), input_ids[one], before[one], counts[one], logits[one])
        return logits, KVCache(batch=batch, length=past.length + new, buffers=(store,))

    def close(self) -> None:
        """Free the weights; the session can't be used afterwards."""
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run_rows(
        self, store: _Store, row: int | None, input_ids: Ints, before: Ints, counts: Ints, logits: Logits
    ) -> None:
        """Run the last `counts` [B] tokens of each row [B, T] after the `before` [B] of its cache, piece by piece."""
        width, limits = int(counts.max()), self._runner.limits
        ids = _to_the_front(input_ids, counts)
        only_last = logits.shape[1] == 1
        piece = max(1, min(limits.tokens, width if only_last else limits.logits))
        for start in range(0, width, piece):
            stop = min(start + piece, width)
            wanted = np.tile(np.arange(stop - start), (len(ids), 1))
            if only_last:
                wanted = np.clip(counts[:, None] - 1 - start, 0, stop - start - 1)
            # A row that has ended stays where it is: what is written behind its end isn't seen.
            indices = before + np.minimum(start, counts)
            made = self._runner.run(store.buffers, row, ids[:, start:stop], indices, wanted)
            for index, count in enumerate(counts):
                if only_last and start < count <= stop:
                    logits[index, 0] = made[index, 0]
                elif not only_last and start < count:
                    num_real = min(int(count), stop) - start
                    first = logits.shape[1] - int(count) + start
                    logits[index, first : first + num_real] = made[index, :num_real]


class _Store:
    """The buffers behind one cache, which every later state of that cache shares.

    Attributes:
        is_real: [B, capacity], false where a column of the caller's mask was padding.
        capacity: tokens that a row's buffer holds.
    """

    def __init__(self, runner: Runner, batch: int, capacity: int) -> None:
        self._runner, self._batch = runner, batch
        self.capacity = runner.limits.capacity or max(capacity, GROWN_TO)
        self._require_room(capacity)
        self.buffers = runner.make_buffers(batch, self.capacity)
        self.is_real = np.zeros((batch, capacity), bool)

    def reserve(self, length: int) -> None:
        """Make room for `length` columns of the mask, and for as many tokens where buffers can grow."""
        if length > self.is_real.shape[1]:
            known = self.is_real
            self.is_real = np.zeros((self._batch, 2 * length), bool)
            self.is_real[:, : known.shape[1]] = known
        if self._runner.limits.capacity is None and length > self.capacity:
            before = self.buffers.read()
            self.capacity = -(-2 * length // GROWN_TO) * GROWN_TO
            self.buffers = self._runner.make_buffers(self._batch, self.capacity)
            self.fill(before)

    def append(self, start: int, is_real: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Note which columns from `start` on are real [B, T]; returns each row's tokens before them, and of them [B].

        Raises:
            ArtefactError: a row has more tokens than its buffer can hold.
        """
        stop = start + is_real.shape[1]
        if stop > self.is_real.shape[1]:
            self.reserve(stop)
        self.is_real[:, start:stop] = is_real
        before = np.count_nonzero(self.is_real[:, :start], axis=1).astype(np.int64)
        counts = np.count_nonzero(is_real, axis=1).astype(np.int64)
        self._require_room(int((before + counts).max(initial=0)))
        return before, counts

    def fill(self, arrays: Sequence[Floats]) -> None:
        """Copy arrays [B, K, P, E] to the front of the buffers."""
        whole = self.buffers.read()
        for buffer, array in zip(whole, arrays, strict=True):
            buffer[:, :, : array.shape[2]] = array
        self.buffers.write(whole)

    def _require_room(self, length: int) -> None:
        if length > self.capacity:
            raise ArtefactError(
                where="the engine",
                expected=f"at most {self.capacity} tokens in a row's cache, the capacity that it was built with",
                found=str(length),
                fix="use shorter texts, or build with a larger capacity",
            )


def _to_the_front(input_ids: Ints, counts: Ints) -> Ints:
    """Each row's last `counts` [B] ids of [B, T] moved to its front, zeros behind them."""
    moved = np.zeros((len(input_ids), int(counts.max())), np.int64)
    for row, count in enumerate(counts):
        moved[row, :count] = input_ids[row, input_ids.shape[1] - count :]
    return moved


def _store_of(cache: KVCache) -> _Store:
    return cast(_Store, cache.buffers[0])
