"""How the next token is chosen from the logits: transformers' own samplers, seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hlap_export.errors import RecipeError

Choose = Callable[[NDArray[np.float32]], int]
"""Logits [V] -> the next token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Which tokens may come next, and how likely each is.

    Attributes:
        temperature: divides the logits; 0 always takes the likeliest token (greedy): then there is nothing to limit.
        top_k: only the k likeliest tokens; 0 for no limit.
        top_p: only the likeliest tokens that together have this probability; 1 for no limit.
        seed: the same seed, engine and prompt give the same text.

    Raises:
        RecipeError: a value out of range, or a limit with temperature 0.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "temperature": (0 <= self.temperature < float("inf"), "0 or more"),
            "top-k": (self.top_k >= 0, "0 or more"),
            "top-p": (0 < self.top_p <= 1, "more than 0, at most 1"),
        }
        for name, (is_in_range, expected) in ranges.items():
            if not is_in_range:
                raise RecipeError(
                    where=f"--{name}",
                    expected=expected,
                    found=str(getattr(self, name.replace("-", "_"))),
                    fix="choose a value in that range",
                )
        if self.temperature == 0 and (self.top_k > 0 or self.top_p < 1):
            raise RecipeError(
                where="--top-k, --top-p",
                expected="a --temperature above 0 beside them",
                found="temperature 0, which always takes the likeliest token",
                fix="add --temperature 0.8, or leave the limits out",
            )


def chooser(sampling: Sampling) -> Choose:
    """The function that picks each next token; it holds the state of the random numbers."""
    return _likeliest if sampling.temperature == 0 else _drawn(sampling)


def _likeliest(logits_V: NDArray[np.float32]) -> int:
    return int(logits_V.argmax())


def _drawn(sampling: Sampling) -> Choose:
    """Draw as transformers does: temperature, then top-k, then top-p, then one draw from what is left."""
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers: Any = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k > 0:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits_V: NDArray[np.float32]) -> int:
        scores_1V: torch.Tensor = warpers(None, torch.from_numpy(logits_V)[None])  # pyright: ignore[reportUnknownMemberType]
        probabilities_1V = torch.softmax(scores_1V, dim=-1)
        return int(torch.multinomial(probabilities_1V, num_samples=1, generator=generator))

    return draw
