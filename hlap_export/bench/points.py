"""The points of a bench: every batch with every length that both engines have positions for."""

from __future__ import annotations

from collections.abc import Sequence

from hlap_export.bench.report import AdjustedLength, Phase
from hlap_export.bench.work import Point


def fitting_points(
    prompt_lengths: Sequence[int], context_lengths: Sequence[int], batches: Sequence[int], *, max_positions: int
) -> tuple[tuple[Point, ...], tuple[AdjustedLength, ...]]:
    """What is timed; a decode step needs one position more than its context."""
    prompts, adjusted_prompts = fit_lengths("prefill", prompt_lengths, limit=max_positions)
    contexts, adjusted_contexts = fit_lengths("decode", context_lengths, limit=max_positions - 1)
    phases: tuple[tuple[Phase, tuple[int, ...]], ...] = (("prefill", prompts), ("decode", contexts))
    points = tuple(
        Point(phase=phase, num_tokens=length, batch=batch)
        for batch in dict.fromkeys(batches)
        for phase, lengths in phases
        for length in lengths
    )
    return points, (*adjusted_prompts, *adjusted_contexts)


def fit_lengths(
    phase: Phase, lengths: Sequence[int], *, limit: int
) -> tuple[tuple[int, ...], tuple[AdjustedLength, ...]]:
    """Cut lengths to `limit` tokens, leaving out what that repeats; say what was changed and why."""
    used: list[int] = []
    adjusted: list[AdjustedLength] = []
    for length in lengths:
        fitting = min(length, limit)
        is_new = fitting not in used
        if is_new:
            used.append(fitting)
        if fitting != length:
            reason = f"the model has positions for {limit} tokens {'before one more' if phase == 'decode' else ''}"
            adjusted.append(
                AdjustedLength(phase=phase, asked=length, used=fitting if is_new else None, reason=reason.strip())
            )
    return tuple(used), tuple(adjusted)


def longest_prompt(points: Sequence[Point]) -> int:
    """The longest prompt that is timed: peak memory belongs to it."""
    return max((point.num_tokens for point in points if point.phase == "prefill"), default=1)


def largest_batch(points: Sequence[Point]) -> int:
    """The most rows that are timed together; peak memory belongs to them too."""
    return max(point.batch for point in points)
