"""The steps that are timed: a prefill of prompts, and one token after contexts of given length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hlap_export.bench.latency import Step
from hlap_export.bench.work import Point
from hlap_export.engines import KVCache, Session


def step_of(session: Session, point: Point, *, seed: int) -> Step:
    """The step of a point, ready to be run again and again."""
    make = prefill_step if point.phase == "prefill" else decode_step
    return make(session, point.num_tokens, batch=point.batch, seed=seed)


def prefill_step(session: Session, length: int, *, batch: int = 1, seed: int) -> Step:
    """Run prompts of `length` random tokens from an empty cache, for the logits of each one's last."""
    ids = np.random.default_rng(seed).integers(0, session.vocab_size, (batch, length), dtype=np.int64)
    mask = np.ones((batch, length), dtype=np.int64)
    positions = np.tile(np.arange(length, dtype=np.int64), (batch, 1))
    empty = session.empty_cache(batch, capacity=length)
    return lambda: session.run(ids, mask, positions, empty, last_only=True)


def decode_step(session: Session, context: int, *, batch: int = 1, seed: int) -> Step:
    """Run one token after `context` cached ones, in every row.

    The cache holds random values: its content doesn't change how long a step takes, and a prefill of that length for
    every engine would take far longer than the steps.
    """
    ids = np.random.default_rng(seed).integers(0, session.vocab_size, (batch, 1), dtype=np.int64)
    mask = np.ones((batch, context + 1), dtype=np.int64)
    positions = np.full((batch, 1), context, dtype=np.int64)
    past = random_cache(session, context, batch=batch, seed=seed)
    return lambda: session.run(ids, mask, positions, past)


def random_cache(session: Session, length: int, *, batch: int = 1, seed: int) -> KVCache:
    """A cache [B, K, length, E] per layer of standard normal keys and values."""
    generator = np.random.default_rng(seed)

    def values(num_kv_heads: int, head_dim: int) -> NDArray[np.float32]:
        return generator.standard_normal((batch, num_kv_heads, length, head_dim), dtype=np.float32)

    return session.load_cache(
        [values(layer.num_kv_heads, layer.head_dim) for layer in session.kv_layers for _ in ("key", "value")],
        capacity=length + 1,
    )
