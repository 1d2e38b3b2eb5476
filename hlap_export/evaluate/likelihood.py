"""How likely an engine finds given continuations of given contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines import Session
from hlap_export.engines.base import Ints
from hlap_export.evaluate.rows import Row, left_padded

LOGITS_BYTES = 1 << 30
"""The most memory that one batch's logits may take: with a large vocabulary, longer texts run in smaller batches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """A text in two parts: what is given, and what is scored. Neither is empty."""

    context: Row
    scored: Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """What the engine thinks of a continuation.

    Attributes:
        log_probability_nats: of all its tokens together.
        is_greedy: whether each of them is the likeliest at its place.
    """

    log_probability_nats: float
    is_greedy: bool


def likelihoods(
    session: Session,
    texts: Sequence[Continuation],
    *,
    batch_size: int,
    longest: int,
    on_text: Callable[[], None] = lambda: None,
) -> list[Likelihood]:
    """Score each continuation; contexts that are too long lose their beginning.

    Texts that an engine sees as the same tokens run once: the answers of a multiple choice that are one token each
    need one step for all of them.

    Args:
        session: the engine.
        texts: what to score.
        batch_size: rows at a time, fewer where their logits would take more than `LOGITS_BYTES`.
        longest: the most tokens that the engine may see at once.
        on_text: called after each text.
    """
    asked: dict[Row, list[int]] = {}
    for index, text in enumerate(texts):
        asked.setdefault(_seen(text, longest), []).append(index)
    scores: dict[int, Likelihood] = {}
    for rows in _batches(list(asked), batch_size, session.vocab_size):
        num_scored = max(len(texts[index].scored) for row in rows for index in asked[row])
        logits_BNV = _last_logits(session, rows, num_scored)
        for row, logits_NV in zip(rows, logits_BNV, strict=True):
            for index in asked[row]:
                scored = np.array(texts[index].scored, np.int64)
                scores[index] = _likelihood(logits_NV[-scored.size :], scored)
                on_text()
    return [scores[index] for index in range(len(texts))]


def _seen(text: Continuation, longest: int) -> Row:
    """What goes into the engine: everything but the last token, which nothing is predicted from."""
    return (text.context + text.scored)[:-1][-longest:]


def _batches(rows: list[Row], batch_size: int, vocab_size: int) -> Iterator[list[Row]]:
    """Rows of similar lengths together, the longest first: a lack of memory shows at once."""
    waiting = sorted(rows, key=lambda row: (-len(row), row))
    while waiting:
        row_bytes = len(waiting[0]) * vocab_size * np.dtype(np.float32).itemsize
        count = max(1, min(batch_size, LOGITS_BYTES // row_bytes))
        yield waiting[:count]
        waiting = waiting[count:]


def _last_logits(session: Session, rows: list[Row], count: int) -> NDArray[np.float32]:
    """Logits [B, N, V] at the last `count` tokens of each row."""
    batch = left_padded(rows)
    cache = session.empty_cache(len(rows), capacity=batch.ids.shape[1])
    logits_BTV, _ = session.run(batch.ids, batch.mask, batch.positions, cache, last_only=count == 1)
    return logits_BTV[:, -count:]


def _likelihood(logits_NV: NDArray[np.float32], scored_N: Ints) -> Likelihood:
    shifted = logits_NV.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, scored_N[:, None], axis=-1)[:, 0]
    return Likelihood(
        log_probability_nats=float((chosen - np.log(np.exp(shifted).sum(axis=-1))).sum()),
        is_greedy=bool((logits_NV.argmax(axis=-1) == scored_N).all()),
    )
