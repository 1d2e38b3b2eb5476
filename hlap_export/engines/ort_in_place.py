"""A session whose graph writes new keys and values into buffers that stay where they are: flavour `ort`.

The attention operator counts a row's tokens from the front of its buffer, so padding never gets there: each row keeps
its real tokens alone, and the mask that the graph sees is one column with their number (it sums the columns, whatever
they are). A step of one token for every row runs as one batch, whatever the rows' lengths; what surrounds it in Python,
run when the caches hold the model, is kept short: it writes the token and that number where they are bound.
Longer steps of rows that have a past, or padding, run row by row, which on a CPU costs nothing: a prompt fills it
anyway.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines.base import Floats, Ints, KVCache
from hlap_export.engines.ort_buffers import NUMPY_DTYPES, ONNX_DTYPES, Buffer
from hlap_export.engines.ort_decoder import LoadedDecoder
from hlap_export.errors import ArtefactError

NUM_KEPT = "num_logits_to_keep"
"""The graph's optional input: how many last tokens have logits, 0 for all of them."""

MASK, COLUMNS = "attention_mask", "mask_columns"
"""The input that is summed, and how a graph names its second dimension that leaves the number of columns free."""

CPU_CHUNK = 512
"""Tokens of a prompt that run at a time, so that what passes between operators stays in the CPU's caches.

Measured on one core, 8 layers x 512 hidden: a prompt of 2,048 takes 0.95 of the time it takes at once, one of 8,192
0.97, for any size from 128 to 1,024; memory for activations no longer grows with the prompt.
"""

REFERENCES_OF_OWNER = 2
"""What `sys.getrefcount` says of an array that only its owner holds: the attribute, and the call's own argument."""

ROUNDED_TO = 64
"""Tokens: what a cache without a known capacity grows to multiples of."""


class InPlaceSession(LoadedDecoder):
    """A loaded graph and I/O bindings to caches of its own making."""

    def __init__(self, session: Any, *, provider: str, threads: int) -> None:
        super().__init__(session, provider=provider, threads=threads)
        _require_columns(session)
        self._device = "cuda" if provider.startswith("CUDA") else "cpu"
        self._chunk = CPU_CHUNK if self._device == "cpu" else sys.maxsize

    def empty_cache(self, batch: int, capacity: int | None = None) -> KVCache:
        """A cache of no tokens with room for `capacity` of them; it grows when they are more."""
        return KVCache(batch=batch, length=0, buffers=(self._new_store(batch, capacity or 0),))

    def load_cache(self, arrays: Sequence[Floats], capacity: int | None = None) -> KVCache:
        """A cache from arrays [B, K, P, E]: key, value, ... in the order of `kv_layers`; rounded to `dtype`."""
        batch, _, length, _ = arrays[0].shape
        shapes = self._cache_shapes(batch, length)
        assert [array.shape for array in arrays] == shapes, "one [B, K, P, E] key and value for each cached layer"
        store = self._new_store(batch, max(capacity or 0, length))
        store.fill(arrays)
        store.append(0, np.ones((batch, length), bool))
        return KVCache(batch=batch, length=length, buffers=(store,))

    def read_cache(self, cache: KVCache) -> tuple[NDArray[np.float32], ...]:
        """Copies of the cache's arrays [B, K, P, E] in float32, zeros where there was padding."""
        store = _store_of(cache)
        is_real = store.is_real[:, : cache.length]
        copies: list[NDArray[np.float32]] = []
        for buffer, shape in zip(store.buffers, self._cache_shapes(cache.batch, cache.length), strict=True):
            content, copy = buffer.read(), np.zeros(shape, np.float32)
            for row, columns in enumerate(is_real):
                copy[row][:, columns] = content[row, :, : np.count_nonzero(columns)]
            copies.append(copy)
        return tuple(copies)

    def run(
        self, input_ids: Ints, attention_mask: Ints, position_ids: Ints, past: KVCache, *, last_only: bool = False
    ) -> tuple[NDArray[np.float32], KVCache]:
        """Run T new tokens [B, T] after the P of `past`, in its buffers; returns logits [B, T, V] or the last.

        `position_ids` aren't read: the graph counts the mask's tokens, which is what they are by the protocol.
        """
        store, (batch, new) = _store_of(past), input_ids.shape
        if batch == new == 1 and attention_mask[0, past.length]:
            return self._step_alone(store, input_ids, past.length), KVCache(1, past.length + 1, (store,))
        store.reserve(past.length + new)
        # Only the mask's new columns are read: a step's cost may not grow with the context.
        new_real, lengths = store.append(past.length, attention_mask[:, past.length :] != 0)
        if new == 1 and new_real.all():
            logits = self._step(store, input_ids, lengths)
            return logits, KVCache(batch=batch, length=past.length + 1, buffers=(store,))
        together = bool((new_real == new).all()) and (batch == 1 or bool((lengths == new).all()))
        logits = np.zeros((batch, 1 if last_only else new, self.vocab_size), np.float32)
        if together and new <= self._chunk:
            self._run(store, None, input_ids, lengths, logits)
        else:
            for row in np.flatnonzero(new_real):
                ids = input_ids[row : row + 1, new - new_real[row] :]
                # Every chunk of a prompt writes its last logits to the same place: the last one's stay.
                wanted = logits[row : row + 1] if last_only else logits[row : row + 1, new - new_real[row] :]
                self._run_row(store, int(row), ids, int(lengths[row]), wanted)
        return logits, KVCache(batch=batch, length=past.length + new, buffers=(store,))

    def _run_row(self, store: _Store, row: int, ids: Ints, length: int, logits: NDArray[np.float32]) -> None:
        """Run one row's new tokens [1, T], the last of which is its `length`th, chunk by chunk."""
        count = ids.shape[1]
        for start in range(0, count, self._chunk):
            stop = min(start + self._chunk, count)
            part = logits[:, start:stop] if logits.shape[1] == count else logits
            self._run(store, row, ids[:, start:stop], np.array([length - count + stop]), part)

    def _run(self, store: _Store, row: int | None, input_ids: Ints, lengths: Ints, logits: NDArray[np.float32]) -> None:
        """Run new tokens [B, T] of all rows, or of one, that end at `lengths` [B], and fill their last logits."""
        ids, counts = (np.ascontiguousarray(array, dtype=np.int64) for array in (input_ids, lengths[:, None]))
        kept = np.array([logits.shape[1]], np.int64)
        binding = store.binding(row)
        _bind_inputs(binding, ids, counts, kept)
        _bind_logits(binding, logits)
        self._compute(binding, lengths)

    def _step(self, store: _Store, input_ids: Ints, lengths: Ints) -> NDArray[np.float32]:
        """Run one new token [B, 1] for every row, which then has `lengths` [B]: all is bound already."""
        step = store.step()
        np.copyto(step.ids, input_ids)
        np.copyto(step.counts, lengths[:, None])
        self._compute(step.binding, lengths)
        return step.logits

    def _step_alone(self, store: _Store, input_ids: Ints, start: int) -> NDArray[np.float32]:
        """The same for the token [1, 1] of the only row, after `start` columns: no arrays are made."""
        length = store.append_one(start)
        step = store.step()
        step.ids[0, 0] = input_ids[0, 0]
        step.counts[0, 0] = length
        self._compute(step.binding, length)
        return step.logits

    def _compute(self, binding: Any, lengths: Ints | int) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except RuntimeError as error:
            if "cos_cache dimension" not in str(error):
                raise
            raise ArtefactError(
                where="the engine",
                expected="no more tokens than the model has positions for (max_position_embeddings in config.json)",
                found=f"a sequence of {int(np.max(lengths))}",
                fix="use shorter texts; flavour portable rotates any position, but the model wasn't trained for them",
            ) from error

    def _new_store(self, batch: int, capacity: int) -> _Store:
        return _Store(self, batch, capacity)

    def make_buffers(self, batch: int, capacity: int) -> list[Buffer]:
        """Zeros for every cached tensor."""
        return [Buffer(shape, self.dtype, self._device) for shape in self._cache_shapes(batch, capacity)]

    def make_binding(self, buffers: Sequence[Buffer], row: int | None) -> Any:
        """An I/O binding whose past and present are the same buffers, all rows of them or one."""
        binding = self._session.io_binding()
        for past, present, buffer in zip(self._past_names, self._present_names, buffers, strict=True):
            shape, pointer = buffer.shape, buffer.pointer
            if row is not None:
                shape = (1, *shape[1:])
                pointer += row * int(np.prod(shape)) * NUMPY_DTYPES[self.dtype].itemsize
            place = (self._device, 0, ONNX_DTYPES[self.dtype], shape, pointer)
            binding.bind_input(past, *place)
            binding.bind_output(present, *place)
        return binding


class _Step:
    """What a step of one token for every row reads and writes, bound once.

    The logits go to the caller as they are: a copy of them, made and freed each time, took 5 % of a step of 2 ms.
    """

    def __init__(self, binding: Any, batch: int, vocab_size: int) -> None:
        self.binding = binding
        self.ids, self.counts = (np.zeros((batch, 1), np.int64) for _ in range(2))
        self.logits = np.zeros((batch, 1, vocab_size), np.float32)
        self._kept = np.ones(1, np.int64)
        _bind_inputs(binding, self.ids, self.counts, self._kept)
        _bind_logits(binding, self.logits)

    @property
    def is_free(self) -> bool:
        """Whether nobody holds the last logits, or a part of them, any more: they may be written over."""
        return sys.getrefcount(self.logits) == REFERENCES_OF_OWNER

    def renew(self) -> _Step:
        """Leave the last logits to whoever holds them."""
        self.logits = np.zeros_like(self.logits)
        _bind_logits(self.binding, self.logits)
        return self


class _Store:
    """The buffers behind one cache, which every later state of that cache shares.

    Attributes:
        is_real: [B, capacity], false where a column of the caller's mask was padding.
        counts: [B, capacity + 1], how many of a row's columns before this one are real.
    """

    def __init__(self, session: InPlaceSession, batch: int, capacity: int) -> None:
        self._session, self._batch = session, batch
        self.is_real = np.zeros((batch, 0), bool)
        self.counts = np.zeros((batch, 1), np.int64)
        self._allocate(capacity)

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        self.buffers = self._session.make_buffers(self._batch, capacity)
        known, counts = self.is_real, self.counts
        self.is_real = np.zeros((self._batch, capacity), bool)
        self.is_real[:, : known.shape[1]] = known
        self.counts = np.zeros((self._batch, capacity + 1), np.int64)
        self.counts[:, : counts.shape[1]] = counts
        self._bindings: dict[int | None, Any] = {}
        self._steps: list[_Step] = []

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens: at least twice as many as before, so that growing stays rare."""
        if length <= self.capacity:
            return
        before = [buffer.read() for buffer in self.buffers]
        self._allocate(-(-max(length, 2 * self.capacity) // ROUNDED_TO) * ROUNDED_TO)
        self.fill(before)

    def append(self, start: int, is_real: NDArray[np.bool_]) -> tuple[Ints, Ints]:
        """Note which columns from `start` on are real [B, T]; returns each row's new real tokens [B], and all [B]."""
        stop = start + is_real.shape[1]
        self.is_real[:, start:stop] = is_real
        before = self.counts[:, start]
        running = is_real if stop == start + 1 else np.cumsum(is_real, axis=1)
        self.counts[:, start + 1 : stop + 1] = before[:, None] + running
        lengths = self.counts[:, stop]
        return lengths - before, lengths

    def append_one(self, start: int) -> int:
        """Note that the only row's column `start` is real; returns how many of its columns now are."""
        self.reserve(start + 1)
        counts = self.counts
        self.is_real[0, start] = True
        counts[0, start + 1] = length = int(counts[0, start]) + 1
        return length

    def fill(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Copy arrays [B, K, P, E] to the front of the buffers."""
        for buffer, array in zip(self.buffers, arrays, strict=True):
            whole = buffer.read()
            whole[:, :, : array.shape[2]] = array
            buffer.write(whole)

    def binding(self, row: int | None) -> Any:
        """The binding to all rows, or to one, made once."""
        if row not in self._bindings:
            self._bindings[row] = self._session.make_binding(self.buffers, row)
        return self._bindings[row]

    def step(self) -> _Step:
        """A step of all rows whose logits nobody needs: of two, for a loop holds its last logits while it makes new."""
        for step in self._steps:
            if step.is_free:
                return step
        if len(self._steps) == 2:
            return self._steps[0].renew()
        binding = self._session.make_binding(self.buffers, None)
        self._steps.append(_Step(binding, self._batch, self._session.vocab_size))
        return self._steps[-1]


def _bind_inputs(binding: Any, ids: Ints, counts: Ints, kept: Ints) -> None:
    """Read new tokens [B, T], each row's number of tokens [B, 1] and that of logits [1] from where they are."""
    for name, array in (("input_ids", ids), (MASK, counts), (NUM_KEPT, kept)):
        binding.bind_input(name, "cpu", 0, np.int64, array.shape, array.ctypes.data)


def _bind_logits(binding: Any, logits: NDArray[np.float32]) -> None:
    """Write logits [B, N, V] to where they are."""
    assert logits.flags.c_contiguous
    binding.bind_output("logits", "cpu", 0, np.float32, logits.shape, logits.ctypes.data)


def _store_of(cache: KVCache) -> _Store:
    return cast(_Store, cache.buffers[0])


def _require_columns(session: Any) -> None:
    """Refuse a graph that takes the number of a mask's columns for the longest row's tokens, as earlier ones did."""
    shape = next(node.shape for node in session.get_inputs() if node.name == MASK)
    if shape[1] != COLUMNS:
        raise ArtefactError(
            where="the engine",
            expected=f"a graph whose {MASK} is [batch, {COLUMNS}]",
            found=f"[{', '.join(map(str, shape))}]: flavour ort of an earlier version of hlap-export",
            fix="export and build it again",
        )
