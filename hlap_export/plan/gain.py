"""Least squares for the gain of a norm: one factor for each channel, from streamed sums; float64.

Shapes: T tokens, O channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


class GainMoments:
    """Sums over tokens, of normed values z before their gain and of targets y: z², z y and, over channels, y²."""

    def __init__(self, num_channels: int, device: Any = "cpu") -> None:
        self.zz_O = torch.zeros(num_channels, dtype=torch.float64, device=device)
        self.zy_O = torch.zeros_like(self.zz_O)
        self.yy = 0.0

    def update(self, z_TO: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add these tokens, any leading axes being tokens."""
        z_TO, y_TO = z_TO.flatten(0, -2).double(), y_TO.flatten(0, -2).double()
        self.zz_O += z_TO.square().sum(0)
        self.zy_O += (z_TO * y_TO).sum(0)
        self.yy += y_TO.square().sum().item()


@dataclass(frozen=True, kw_only=True, slots=True)
class GainFit:
    """The factors [O], and squared error over the targets' squares on the tokens held back; no ridge was needed."""

    factors: torch.Tensor
    unexplained_ratio: float
    ridge: float = 0.0


def fit_gain(fitted_on: GainMoments, held_back: GainMoments) -> GainFit:
    """The factor of each channel that brings z nearest to y: `sum(z y) / sum(z²)`, from all tokens; 1 where z is 0."""
    trial_O = _factors(fitted_on.zy_O, fitted_on.zz_O)
    error = held_back.yy - 2 * trial_O.dot(held_back.zy_O).item() + trial_O.square().dot(held_back.zz_O).item()
    factors_O = _factors(fitted_on.zy_O + held_back.zy_O, fitted_on.zz_O + held_back.zz_O)
    return GainFit(factors=factors_O, unexplained_ratio=error / held_back.yy if held_back.yy else 0.0)


def _factors(zy_O: torch.Tensor, zz_O: torch.Tensor) -> torch.Tensor:
    is_silent_O = zz_O == 0
    return torch.where(is_silent_O, 1.0, zy_O / torch.where(is_silent_O, 1.0, zz_O))
