"""Perplexity of an engine: the mean loss over windows of text, its standard error and its interval."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hlap_export.engines import Session
from hlap_export.quantiles import LEVEL, normal, student_t
from hlap_export.verify.report import EnginePerplexity, Perplexity

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

NUM_RESAMPLES = 10_000
SEED = 0
LARGEST_LOSS_NATS = 500.0
"""In place of a loss that is no number, or larger: its perplexity still is one."""


def token_losses(logits_TV: NDArray[np.float32], ids_T: Ids) -> Floats:
    """Cross-entropy [T - 1] in nats of each token after the first, given the logits at the one before."""
    shifted = logits_TV[:-1].astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, ids_T[1:, None], axis=-1)[:, 0]
    return np.log(np.exp(shifted).sum(axis=-1)) - chosen


def window_losses(session: Session, windows: Ids, *, on_window: Callable[[], None] = lambda: None) -> Floats:
    """Mean loss [N] in nats per token of each window [N, T], every position after the first scored."""
    losses: list[float] = []
    ones = np.ones((1, windows.shape[1]), dtype=np.int64)
    positions = np.arange(windows.shape[1], dtype=np.int64)[None]
    for ids in windows:
        # One window at a time: the logits of a large vocabulary are the largest thing in memory.
        logits, _ = session.run(ids[None], ones, positions, session.empty_cache(1, capacity=ids.size))
        loss_nats = float(token_losses(logits[0], ids).mean())
        losses.append(loss_nats if loss_nats < LARGEST_LOSS_NATS else LARGEST_LOSS_NATS)
        on_window()
    return np.array(losses)


def compare_losses(candidate: Floats, baseline: Floats | None, *, window_length: int) -> Perplexity:
    """Summarise window losses [N]; the difference is taken window by window."""
    common = {
        "num_windows": candidate.size,
        "window_length": window_length,
        "num_scored_tokens": candidate.size * (window_length - 1),
        "candidate": _summary(candidate),
    }
    if baseline is None:
        return Perplexity.model_validate(common | dict.fromkeys(set(Perplexity.model_fields) - set(common)))
    increase = candidate - baseline
    low, high = mean_interval(increase)
    return Perplexity.model_validate(
        common
        | {
            "baseline": _summary(baseline),
            "loss_increase_nats_per_token": float(increase.mean()),
            "loss_increase_standard_error_nats_per_token": standard_error(increase),
            "increase_ratio": math.expm1(increase.mean()),
            "increase_ratio_low": math.expm1(low),
            "increase_ratio_high": math.expm1(high),
        }
    )


def mean_interval(values: Floats) -> tuple[float, float]:
    """95% bootstrap interval of the mean of window losses [N], or of their differences; windows are resampled.

    A few windows tell little of how windows differ: the interval is stretched as Student's t stretches it. Of a single
    one nothing is known, and both ends are its value.
    """
    mean, size = float(values.mean()), values.size
    if size == 1:
        return mean, mean
    picks = np.random.default_rng(SEED).integers(0, size, (NUM_RESAMPLES, size))
    ends = np.quantile(values[picks].mean(axis=1), [1 - LEVEL, LEVEL])
    stretch = student_t(size - 1) / normal() * math.sqrt(size / (size - 1))
    low, high = (float(mean + stretch * (end - mean)) for end in ends)
    return max(min(low, mean), -LARGEST_LOSS_NATS), min(max(high, mean), LARGEST_LOSS_NATS)


def standard_error(values: Floats) -> float:
    """Standard error of the mean; 0 for a single value, of which nothing is known."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0


def _summary(losses: Floats) -> EnginePerplexity:
    mean, (low, high) = float(losses.mean()), mean_interval(losses)
    return EnginePerplexity(
        loss_nats_per_token=mean,
        standard_error_nats_per_token=standard_error(losses),
        perplexity=math.exp(mean),
        perplexity_low=math.exp(low),
        perplexity_high=math.exp(high),
        window_losses_nats_per_token=tuple(float(loss) for loss in losses.round(7)),
    )
