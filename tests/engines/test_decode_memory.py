"""Decoding into one cache allocates the same at its thousandth token as at its first ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from hlap_export.engines import KVCache, Session, build, open_session
from hlap_export.export import export
from tests.tiny import VOCAB_SIZE, save_tiny

BATCH, CAPACITY, PROMPT = 8, 1024, 12
STEPS = 800

# A step's own arrays are of 8 tokens and 8 x 96 logits. One int64 for each row and token of context would be 58,000
# bytes more at the last step than at the first, a float cache that is copied 460,000.
LARGEST_STEP_GROWTH_BYTES = 1024
LARGEST_RESIDENT_GROWTH_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("decode")
    save_tiny(root / "model", "llama", max_position_embeddings=CAPACITY)
    export(root / "model", root / "onnx", flavour="ort")
    build(root / "onnx", root / "engine")
    return root / "engine"


class Decoding:
    """A cache of fixed capacity after a prompt, in which each step adds a token to every row."""

    def __init__(self, session: Session, padding: tuple[int, ...]) -> None:
        self._session = session
        self._mask = np.ones((BATCH, CAPACITY), np.int64)
        for row, count in enumerate(padding):
            self._mask[row, :count] = 0
        self._positions = np.maximum(self._mask.cumsum(axis=1) - 1, 0)
        self._ids = np.random.default_rng(2).integers(1, VOCAB_SIZE, (BATCH, CAPACITY))
        self._cache: KVCache = session.empty_cache(BATCH, CAPACITY)
        for buffer in cast(Any, self._cache.buffers[0]).buffers:
            buffer.read().fill(0)  # the system hands out pages when they are first written, which isn't growth
        self.step(PROMPT)

    def step(self, count: int = 1) -> None:
        start, stop = self._cache.length, self._cache.length + count
        _, self._cache = self._session.run(
            self._ids[:, start:stop], self._mask[:, :stop], self._positions[:, start:stop], self._cache, last_only=True
        )

    def traced_bytes(self) -> int:
        """What one step allocates in Python and NumPy at its peak."""
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        self.step()
        return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("padding", [(0,) * BATCH, tuple(range(BATCH))], ids=["equal rows", "unequal rows"])
def test_a_step_allocates_nothing_that_grows_with_the_context(engine: Path, padding: tuple[int, ...]) -> None:
    with open_session(engine, threads=1) as session:
        decoding = Decoding(session, padding)
        tracemalloc.start()
        try:
            early = [decoding.traced_bytes() for _ in range(10)]
            for _ in range(STEPS):
                decoding.step()
            late = [decoding.traced_bytes() for _ in range(10)]
        finally:
            tracemalloc.stop()
        assert min(late) - min(early) <= LARGEST_STEP_GROWTH_BYTES
        # By now the runtime has written to all of the scratch that it keeps for one row of scores: a second text.
        decoding = Decoding(session, padding)
        before = resident_bytes()
        for _ in range(STEPS):
            decoding.step()
        assert resident_bytes() - before <= LARGEST_RESIDENT_GROWTH_BYTES


def resident_bytes() -> int:
    """Memory of this process that is in RAM (VmRSS)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
