"""The steps that are timed: a prefill of a prompt, and one token after a context of given length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hlap_export.bench.latency import Step
from hlap_export.engines import KVCache, Session

BATCH = 1


def prefill_step(session: Session, length: int, *, seed: int) -> Step:
    """Run a prompt of `length` random tokens from an empty cache, for the logits of its last one."""
    ids = np.random.default_rng(seed).integers(0, session.vocab_size, (BATCH, length), dtype=np.int64)
    mask = np.ones((BATCH, length), dtype=np.int64)
    positions = np.arange(length, dtype=np.int64)[None]
    empty = session.empty_cache(BATCH, capacity=length)
    return lambda: session.run(ids, mask, positions, empty, last_only=True)


def decode_step(session: Session, context: int, *, seed: int) -> Step:
    """Run one token after `context` cached ones.

    The cache holds random values: its content doesn't change how long a step takes, and a prefill of that length for
    every engine would take far longer than the steps.
    """
    ids = np.random.default_rng(seed).integers(0, session.vocab_size, (BATCH, 1), dtype=np.int64)
    mask = np.ones((BATCH, context + 1), dtype=np.int64)
    positions = np.array([[context]], dtype=np.int64)
    past = random_cache(session, context, seed=seed)
    return lambda: session.run(ids, mask, positions, past)


def random_cache(session: Session, length: int, *, seed: int) -> KVCache:
    """A cache [1, K, length, E] per layer of standard normal keys and values."""
    generator = np.random.default_rng(seed)

    def values(num_kv_heads: int, head_dim: int) -> NDArray[np.float32]:
        return generator.standard_normal((BATCH, num_kv_heads, length, head_dim), dtype=np.float32)

    return session.load_cache(
        [values(layer.num_kv_heads, layer.head_dim) for layer in session.kv_layers for _ in ("key", "value")],
        capacity=length + 1,
    )
