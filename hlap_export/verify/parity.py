"""Does the engine compute the reference's logits: at prefill, through the cache, and in a padded batch?

The reference sees each row whole, alone and without a cache, so that a mistake in the engine's cache, positions or
padding can't be mirrored by the same mistake in the reference.

Shapes: B batch, T new tokens, P past tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines import KVCache, Session
from hlap_export.verify.perplexity import token_losses
from hlap_export.verify.report import Check, Divergence, Greedy, Location
from hlap_export.verify.tolerances import Tolerance

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
# In place of a NaN or infinite error: larger than any bound, and a number that JSON can hold.
NON_FINITE = float(np.finfo(np.float32).max)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sequence: its tokens, how many of them are the prompt, and the reference's logits [T, V] for all."""

    ids: Ids
    prompt_length: int
    expected: Logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """The engine's logits [V] for token `position` of row `row`."""

    row: int
    position: int
    logits: Logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """The outcome of all checks."""

    checks: tuple[Check, ...]
    greedy: Greedy


def cut_rows(ids: Ids, prompt_lengths: Sequence[int], num_steps: int) -> tuple[Ids, ...]:
    """Consecutive rows of prompt + steps tokens from `ids`."""
    ends = np.cumsum([prompt_length + num_steps for prompt_length in prompt_lengths])
    return tuple(np.split(ids[: ends[-1]], ends[:-1]))


def check_parity(session: Session, rows: Sequence[Row], tolerance: Tolerance) -> Parity:
    """Run every check; `rows` are of different prompt lengths and have equally many tokens after the prompt."""
    prefill, decode = _single(session, rows[0], chunks=1)
    chunked, _ = _single(session, rows[0], chunks=2)
    padded_prefill, padded_decode = _padded(session, rows)
    observed = {
        "prefill logits": prefill,
        "cached decode logits": decode,
        "chunked prefill logits": chunked,
        "padded prefill logits": padded_prefill,
        "padded decode logits": padded_decode,
    }
    greedy = _greedy(observed, rows)
    checks = [_logit_check(name, seen, rows, tolerance.logit_error_ratio) for name, seen in observed.items()]
    loss_difference = _loss_difference([*prefill, *decode], rows[0])
    return Parity(
        checks=(
            *checks,
            _check("mean loss difference", loss_difference, tolerance.loss_difference_nats, "at most"),
            _check("greedy agreement", greedy.agreement, tolerance.greedy_agreement, "at least"),
        ),
        greedy=greedy,
    )


def _single(session: Session, row: Row, *, chunks: int) -> tuple[list[Observed], list[Observed]]:
    """One row alone: its prompt in `chunks` parts, then token by token, fed the row's own tokens."""
    cache = session.empty_cache(1, capacity=row.ids.size)
    parts = [
        *np.array_split(np.arange(row.prompt_length), chunks),
        *np.arange(row.prompt_length, row.ids.size)[:, None],
    ]
    observed: list[Observed] = []
    for positions in parts:
        mask = np.ones((1, positions[-1] + 1), dtype=np.int64)
        logits, cache = session.run(row.ids[None, positions], mask, positions[None].astype(np.int64), cache)
        observed += [Observed(row=0, position=int(at), logits=logits[0, i]) for i, at in enumerate(positions)]
    return observed[: row.prompt_length], observed[row.prompt_length :]


def _padded(session: Session, rows: Sequence[Row]) -> tuple[list[Observed], list[Observed]]:
    """All rows in one batch, shorter prompts padded on the left; then step by step together."""
    width = max(row.prompt_length for row in rows)
    padding = np.array([width - row.prompt_length for row in rows])
    num_steps = rows[0].ids.size - rows[0].prompt_length
    # Padding ids are real tokens: if one leaks through the mask, the logits show it.
    ids = np.stack([np.concatenate([row.ids[:pad][::-1], row.ids]) for row, pad in zip(rows, padding, strict=True)])
    columns = np.arange(width + num_steps)
    mask = (columns[None] >= padding[:, None]).astype(np.int64)
    positions = np.maximum(columns[None] - padding[:, None], 0).astype(np.int64)
    prefill: list[Observed] = []
    decode: list[Observed] = []
    cache: KVCache = session.empty_cache(len(rows), capacity=width + num_steps)
    for start, end in [(0, width), *((at, at + 1) for at in range(width, width + num_steps))]:
        logits, cache = session.run(ids[:, start:end], mask[:, :end], positions[:, start:end], cache)
        for index, pad in enumerate(padding):
            for column in range(max(start, int(pad)), end):
                seen = Observed(row=index, position=column - int(pad), logits=logits[index, column - start])
                (prefill if start == 0 else decode).append(seen)
    return prefill, decode


def _logit_check(name: str, observed: Sequence[Observed], rows: Sequence[Row], bound: float) -> Check:
    """max|Δlogit| / max|logit| over the check's tokens, and where it is reached."""
    errors = np.stack([np.abs(seen.logits - rows[seen.row].expected[seen.position]) for seen in observed])
    errors[np.isnan(errors)] = np.inf
    scale = max(float(np.abs(rows[seen.row].expected[seen.position]).max()) for seen in observed)
    index, token = (int(i) for i in np.unravel_index(int(errors.argmax()), errors.shape))
    location = Location(batch_row=observed[index].row, position=observed[index].position, token=token)
    return _check(name, _finite(float(errors.max()) / scale), bound, "at most", location)


def _loss_difference(observed: Sequence[Observed], row: Row) -> float:
    """|Δ mean loss| in nats per token over the row."""
    logits = np.stack([seen.logits for seen in observed])
    return _finite(abs(float(token_losses(logits, row.ids).mean() - token_losses(row.expected, row.ids).mean())))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else NON_FINITE


def _greedy(observed: dict[str, list[Observed]], rows: Sequence[Row]) -> Greedy:
    """Compare the most likely tokens of every check, in the order in which they were run."""
    divergences: list[Divergence] = []
    for name, tokens in observed.items():
        for seen in tokens:
            expected = rows[seen.row].expected[seen.position]
            ours, theirs = int(seen.logits.argmax()), int(expected.argmax())
            if ours != theirs:
                divergence = Divergence(
                    check=name,
                    batch_row=seen.row,
                    position=seen.position,
                    engine_token=ours,
                    reference_token=theirs,
                    reference_margin_logits=float(expected[theirs] - expected[ours]),
                )
                divergences.append(divergence)
    total = sum(len(tokens) for tokens in observed.values())
    return Greedy(
        agreement=1 - len(divergences) / total,
        num_tokens=total,
        first_divergence=divergences[0] if divergences else None,
    )


def _check(name: str, value: float, bound: float, rule: str, location: Location | None = None) -> Check:
    passed = value <= bound if rule == "at most" else value >= bound
    return Check.model_validate(
        {"name": name, "value": value, "bound": bound, "rule": rule, "passed": passed, "location": location}
    )
