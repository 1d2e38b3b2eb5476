"""Does the engine compute the reference's logits: at prefill, through the cache, in a padded batch, in a long context?

The reference sees each row whole, alone and without a cache, so that a mistake in the engine's cache, positions or
padding can't be mirrored by the same mistake in the reference.

Shapes: B batch, T new tokens, P past tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines import KVCache, Session
from hlap_export.verify.report import Agreement, Check, Greedy, Location
from hlap_export.verify.tokens import (
    TokenComparison,
    agreement_of,
    compare_token,
    divergence_at,
    finite,
    mean_kl_nats,
)
from hlap_export.verify.tolerances import Tolerance

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

PREFILL, DECODE, CHUNKED = "prefill logits", "cached decode logits", "chunked prefill logits"
PADDED_PREFILL, PADDED_DECODE = "padded prefill logits", "padded decode logits"
LONG_CONTEXT = "long context logits"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sequence, and what the reference makes of it.

    Attributes:
        ids: its tokens [T].
        prompt_length: how many of them are the prompt.
        expected: the reference's logits [T - first, V], from token `first` on.
        first: how many tokens at the front have none.
    """

    ids: Ids
    prompt_length: int
    expected: Logits
    first: int = 0

    def compare(self, logits_V: Logits, *, row: int, position: int) -> TokenComparison:
        """The engine's logits [V] for the token at `position` beside the reference's."""
        following = int(self.ids[position + 1]) if position + 1 < self.ids.size else None
        return compare_token(
            logits_V, self.expected[position - self.first], row=row, position=position, following=following
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The outcome of all checks."""

    checks: tuple[Check, ...]
    agreement: tuple[Agreement, ...]
    greedy: Greedy


def cut_rows(ids: Ids, prompt_lengths: Sequence[int], num_steps: int) -> tuple[Ids, ...]:
    """Consecutive rows of prompt + steps tokens from `ids`."""
    ends = np.cumsum([prompt_length + num_steps for prompt_length in prompt_lengths])
    return tuple(np.split(ids[: ends[-1]], ends[:-1]))


def check_parity(session: Session, rows: Sequence[Row], tolerance: Tolerance, *, context: Row | None = None) -> Parity:
    """Run every check.

    Args:
        session: the engine.
        rows: of different prompt lengths, with equally many tokens after the prompt.
        tolerance: the bounds.
        context: a row as long as the engine can hold, whose last tokens alone are compared; None to leave it out.
    """
    compared = _compared(session, rows, context)
    greedy = _greedy(compared)
    every = [token for tokens in compared.values() for token in tokens]
    alone = [*compared[PREFILL], *compared[DECODE]]
    loss_difference = abs(sum(token.loss_increase_nats for token in alone)) / (len(alone) - 1)
    return Parity(
        checks=(
            *(_logit_check(name, tokens, tolerance.logit_error_ratio) for name, tokens in compared.items()),
            _check("mean KL divergence", mean_kl_nats(every), tolerance.kl_nats, "at most"),
            _check("mean loss difference", finite(loss_difference), tolerance.loss_difference_nats, "at most"),
            _check("greedy agreement", greedy.agreement, tolerance.greedy_agreement, "at least"),
        ),
        agreement=tuple(agreement_of(name, tokens) for name, tokens in compared.items()),
        greedy=greedy,
    )


def _compared(session: Session, rows: Sequence[Row], context: Row | None) -> dict[str, list[TokenComparison]]:
    """Every token that the checks look at, check by check."""
    alone, size = rows[0], rows[0].prompt_length
    whole = list(_alone(session, alone, [size], alone.ids.size - size))
    halves = [len(part) for part in np.array_split(np.arange(size), 2)]
    chunked = list(_alone(session, alone, halves, 0))
    padded = list(_padded(session, rows))
    return {
        PREFILL: whole[:size],
        DECODE: whole[size:],
        CHUNKED: chunked,
        PADDED_PREFILL: [token for token in padded if token.position < rows[token.row].prompt_length],
        PADDED_DECODE: [token for token in padded if token.position >= rows[token.row].prompt_length],
        **({LONG_CONTEXT: list(_long_context(session, context))} if context else {}),
    }


def _alone(session: Session, row: Row, parts: Sequence[int], num_steps: int) -> Iterator[TokenComparison]:
    """One row alone: its prompt in parts of so many tokens, then token by token, fed the row's own tokens."""
    cache = session.empty_cache(1, capacity=sum(parts) + num_steps)
    for count in [*parts, *[1] * num_steps]:
        start, stop = cache.length, cache.length + count
        mask = np.ones((1, stop), dtype=np.int64)
        positions = np.arange(start, stop, dtype=np.int64)[None]
        logits, cache = session.run(row.ids[None, start:stop], mask, positions, cache)
        for position in range(start, stop):
            yield row.compare(logits[0, position - start], row=0, position=position)


def _padded(session: Session, rows: Sequence[Row]) -> Iterator[TokenComparison]:
    """All rows in one batch, shorter prompts padded on the left; then step by step together."""
    batch = pad_left(rows)
    width, total = max(row.prompt_length for row in rows), batch.ids.shape[1]
    cache: KVCache = session.empty_cache(len(rows), capacity=total)
    for start, stop in [(0, width), *((at, at + 1) for at in range(width, total))]:
        new = (batch.ids[:, start:stop], batch.mask[:, :stop], batch.positions[:, start:stop])
        logits, cache = session.run(*new, cache)
        for index, row in enumerate(rows):
            padding = width - row.prompt_length
            for column in range(max(start, padding), stop):
                yield row.compare(logits[index, column - start], row=index, position=column - padding)


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedBatch:
    """Rows [B, S] whose prompts end at the same column."""

    ids: Ids
    mask: Ids
    positions: Ids


def pad_left(rows: Sequence[Row]) -> PaddedBatch:
    """Put padding before the shorter prompts."""
    width = max(row.prompt_length for row in rows)
    padding = np.array([width - row.prompt_length for row in rows])
    # Padding ids are real tokens: if one leaks through the mask, the logits show it.
    ids = np.stack(
        [np.concatenate([np.resize(row.ids, pad)[::-1], row.ids]) for row, pad in zip(rows, padding, strict=True)]
    )
    columns = np.arange(width + rows[0].ids.size - rows[0].prompt_length)
    return PaddedBatch(
        ids=ids,
        mask=(columns[None] >= padding[:, None]).astype(np.int64),
        positions=np.maximum(columns[None] - padding[:, None], 0).astype(np.int64),
    )


def _long_context(session: Session, row: Row) -> Iterator[TokenComparison]:
    """The prompt's last logits alone, as in generation, and the steps to the end of the row."""
    cache = session.empty_cache(1, capacity=row.ids.size)
    for start, stop in [(0, row.prompt_length), *((at, at + 1) for at in range(row.prompt_length, row.ids.size))]:
        mask, positions = np.ones((1, stop), dtype=np.int64), np.arange(start, stop, dtype=np.int64)[None]
        logits, cache = session.run(row.ids[None, start:stop], mask, positions, cache, last_only=True)
        yield row.compare(logits[0, -1], row=0, position=stop - 1)


def _logit_check(name: str, tokens: Sequence[TokenComparison], bound: float) -> Check:
    """max|Δlogit| / max|logit| over the check's tokens, and where it is reached."""
    worst = max(tokens, key=lambda token: token.max_error)
    location = Location(batch_row=worst.row, position=worst.position, token=worst.worst_token)
    scale = max(token.scale for token in tokens)
    return _check(name, finite(worst.max_error / scale), bound, "at most", location)


def _greedy(compared: dict[str, list[TokenComparison]]) -> Greedy:
    """Compare the most likely tokens of every check, in the order in which they were run."""
    differing = [
        divergence_at(name, token)
        for name, tokens in compared.items()
        for token in tokens
        if token.engine_token != token.reference_token
    ]
    total = sum(len(tokens) for tokens in compared.values())
    agreed = [token.engine_token == token.reference_token for token in compared[DECODE]]
    return Greedy(
        agreement=1 - len(differing) / total,
        num_tokens=total,
        first_divergence=differing[0] if differing else None,
        steps_agreed=agreed.index(False) if False in agreed else len(agreed),
    )


def _check(name: str, value: float, bound: float, rule: str, location: Location | None = None) -> Check:
    passed = value <= bound if rule == "at most" else value >= bound
    return Check.model_validate(
        {"name": name, "value": value, "bound": bound, "rule": rule, "passed": passed, "location": location}
    )
