"""One token's logits, the engine's beside the reference's: everything that checks are made of.

Logits are compared as they come and not kept: with a large vocabulary they would fill gigabytes.

Shapes: V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hlap_export.verify.report import Agreement, Divergence

Logits = NDArray[np.float32]
# In place of a NaN or infinite error: larger than any bound, and a number that JSON can hold.
NON_FINITE = float(np.finfo(np.float32).max)
NUM_BEST = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenComparison:
    """How the engine's logits for one token differ from the reference's.

    Attributes:
        row: of the batch.
        position: the token's, counted without padding.
        max_error: max|Δlogit|, infinite where one isn't a number.
        mean_error: mean|Δlogit|.
        worst_token: where in the vocabulary the largest error is.
        scale: max|logit| of the reference.
        kl_nats: KL divergence of the engine's distribution from the reference's.
        loss_increase_nats: how much less probable the engine finds the token that follows; 0 where none does.
        engine_token: the engine's most likely next token.
        reference_token: the reference's.
        reference_margin: how much higher the reference has its own choice than the engine's.
        shared_best: which fraction of the reference's five best tokens are among the engine's.
    """

    row: int
    position: int
    max_error: float
    mean_error: float
    worst_token: int
    scale: float
    kl_nats: float
    loss_increase_nats: float
    engine_token: int
    reference_token: int
    reference_margin: float
    shared_best: float


def compare_token(
    logits_V: Logits, expected_V: Logits, *, row: int, position: int, following: int | None
) -> TokenComparison:
    """Compare two logit vectors [V]; `following` is the token that comes next, where one does."""
    errors_V = np.abs(logits_V - expected_V)
    errors_V[np.isnan(errors_V)] = np.inf
    ours, theirs = _log_probabilities(logits_V), _log_probabilities(expected_V)
    engine_token, reference_token = int(logits_V.argmax()), int(expected_V.argmax())
    return TokenComparison(
        row=row,
        position=position,
        max_error=float(errors_V.max()),
        mean_error=float(errors_V.mean(dtype=np.float64)),
        worst_token=int(errors_V.argmax()),
        scale=float(np.abs(expected_V).max()),
        kl_nats=finite(float(np.exp(theirs) @ (theirs - ours))),
        loss_increase_nats=0.0 if following is None else finite(float(theirs[following] - ours[following])),
        engine_token=engine_token,
        reference_token=reference_token,
        reference_margin=float(expected_V[reference_token] - expected_V[engine_token]),
        shared_best=len(_best(logits_V) & _best(expected_V)) / min(NUM_BEST, expected_V.size),
    )


def agreement_of(check: str, tokens: Sequence[TokenComparison]) -> Agreement:
    """One check's tokens in figures; errors are relative to the largest logit among them."""
    scale = max(token.scale for token in tokens)
    return Agreement(
        check=check,
        num_tokens=len(tokens),
        max_error_ratio=finite(max(token.max_error for token in tokens) / scale),
        mean_error_ratio=finite(_mean([token.mean_error for token in tokens]) / scale),
        mean_kl_nats=mean_kl_nats(tokens),
        max_kl_nats=max(token.kl_nats for token in tokens),
        top1_agreement=_mean([float(token.engine_token == token.reference_token) for token in tokens]),
        top5_agreement=_mean([token.shared_best for token in tokens]),
    )


def mean_kl_nats(tokens: Sequence[TokenComparison]) -> float:
    """Mean KL divergence, in nats per token."""
    return _mean([token.kl_nats for token in tokens])


def divergence_at(check: str, token: TokenComparison) -> Divergence:
    """What there is to say where both choose differently."""
    return Divergence(
        check=check,
        batch_row=token.row,
        position=token.position,
        engine_token=token.engine_token,
        reference_token=token.reference_token,
        reference_margin_logits=token.reference_margin,
    )


def finite(value: float) -> float:
    """The value, or a number larger than any bound."""
    return value if math.isfinite(value) else NON_FINITE


def _mean(values: Sequence[float]) -> float:
    return finite(math.fsum(value / len(values) for value in values))


def _log_probabilities(logits_V: Logits) -> NDArray[np.float64]:
    shifted = logits_V.astype(np.float64)
    shifted -= shifted.max()
    return shifted - np.log(np.exp(shifted).sum())


def _best(logits_V: Logits) -> set[int]:
    count = min(NUM_BEST, logits_V.size)
    return {int(token) for token in np.argpartition(logits_V, -count)[-count:]}
