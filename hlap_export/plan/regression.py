"""Linear least squares from streamed moments: tensor -> tensor, in float64, memory that no number of tokens changes.

With x the inputs, y the targets, and C their covariances over the tokens, ridge regression towards a prior map P is

    W = P + (C_yx - P C_xx) (C_xx + r I)^-1,    b = mean(y) - W mean(x)

and the error of any W on other tokens follows from their moments alone, so that a ridge r can be chosen on tokens that
were held back without a second pass over them.

Shapes: T tokens, I inputs, O outputs, R rank. Weights are `nn.Linear`'s, [out, in].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

_linalg = cast(Any, torch.linalg)  # torch's stubs say nothing of it


class Moments:
    """Sums over tokens of inputs x and targets y, and of their products.

    Args:
        num_inputs: I.
        num_outputs: O.
        device: where they are summed.
    """

    def __init__(self, num_inputs: int, num_outputs: int, device: Any = "cpu") -> None:
        def zeros(*shape: int) -> torch.Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.count, self.yy = 0, 0.0
        self.x_I, self.y_O = zeros(num_inputs), zeros(num_outputs)
        self.xx_II, self.xy_IO = zeros(num_inputs, num_inputs), zeros(num_inputs, num_outputs)

    def update(self, x_TI: torch.Tensor, y_TO: torch.Tensor) -> None:
        """Add these tokens, any leading axes being tokens."""
        x_TI, y_TO = x_TI.flatten(0, -2).double(), y_TO.flatten(0, -2).double()
        self.count += len(x_TI)
        self.x_I += x_TI.sum(0)
        self.y_O += y_TO.sum(0)
        self.xx_II.addmm_(x_TI.T, x_TI)
        self.xy_IO.addmm_(x_TI.T, y_TO)
        self.yy += y_TO.square().sum().item()

    def __add__(self, other: Moments) -> Moments:
        total = Moments(0, 0)
        total.count, total.yy = self.count + other.count, self.yy + other.yy
        total.x_I, total.y_O = self.x_I + other.x_I, self.y_O + other.y_O
        total.xx_II, total.xy_IO = self.xx_II + other.xx_II, self.xy_IO + other.xy_IO
        return total

    @property
    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean input [I] and mean target [O]."""
        return self.x_I / self.count, self.y_O / self.count

    def about(self, x_I: torch.Tensor, y_O: torch.Tensor) -> _Central:
        """Second moments per token about these points."""
        mean_x_I, mean_y_O = self.means
        shift_I, shift_O = mean_x_I - x_I, mean_y_O - y_O
        return _Central(
            xx=self.xx_II / self.count - mean_x_I.outer(mean_x_I) + shift_I.outer(shift_I),
            xy=self.xy_IO / self.count - mean_x_I.outer(mean_y_O) + shift_I.outer(shift_O),
            yy=self.yy / self.count - mean_y_O.dot(mean_y_O).item() + shift_O.dot(shift_O).item(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Central:
    """Second moments per token about some point: [I, I], [I, O], and the targets' over all channels."""

    xx: torch.Tensor
    xy: torch.Tensor
    yy: float

    def beyond(self, prior_OI: torch.Tensor | None) -> _Central:
        """The same with what the prior explains taken off the targets."""
        if prior_OI is None:
            return self
        explained_IO = self.xx @ prior_OI.T
        cross = (prior_OI.T * self.xy).sum().item()
        return _Central(
            xx=self.xx,
            xy=self.xy - explained_IO,
            yy=self.yy - 2 * cross + (prior_OI.T * explained_IO).sum().item(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearFit:
    """A fitted map `W x + b`.

    Attributes:
        weight: W, [O, I] float64.
        bias: b, [O] float64; zeros where none was asked for.
        ridge: relative to the mean of the covariance's diagonal.
        unexplained_ratio: squared error over the targets' variance, on the tokens that were held back, of the map
            fitted to the others.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    ridge: float
    unexplained_ratio: float


def fit_linear(
    fitted_on: Moments,
    held_back: Moments,
    ridges: Sequence[float],
    *,
    prior_OI: torch.Tensor | None = None,
    has_bias: bool = True,
) -> LinearFit:
    """Choose the ridge on the tokens held back, then fit all tokens with it.

    Args:
        fitted_on: tokens that candidates are fitted to.
        held_back: tokens that they are judged by.
        ridges: candidates, relative to the mean of the covariance's diagonal.
        prior_OI: the map that a ridge without end leads to; None for zero.
        has_bias: whether the map has a bias; without one the targets' mean must be reached by W.
    """
    prior_OI = None if prior_OI is None else prior_OI.double()
    trials = _Trials(fitted_on, held_back, prior_OI, has_bias)
    error, ridge = min(zip(trials.errors(ridges), ridges, strict=True))
    del trials
    weight_OI, bias_O = _solve(fitted_on + held_back, ridge, prior_OI, has_bias)
    variance = held_back.about(*held_back.means).yy
    return LinearFit(
        weight=weight_OI, bias=bias_O, ridge=ridge, unexplained_ratio=error / variance if variance else 0.0
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRankFit:
    """A fitted map `U V x + b` of rank R.

    Attributes:
        output: U, [O, R] float64.
        value: V, [R, I] float64.
        bias: b, [O] float64.
        ridge: relative to the mean of the covariance's diagonal.
        unexplained_ratio: as of `LinearFit`, of the map of this rank.
    """

    output: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor
    ridge: float
    unexplained_ratio: float


def fit_low_rank(fitted_on: Moments, held_back: Moments, ridges: Sequence[float], rank: int) -> LowRankFit:
    """Reduced-rank regression, its ridge chosen on the tokens held back by what the map of this rank does there."""
    trials = _Trials(fitted_on, held_back, None, has_bias=True)
    error, ridge = min((trials.low_rank_error(each, rank), each) for each in ridges)
    del trials
    every = fitted_on + held_back
    weight_OI, _ = _solve(every, ridge, None, has_bias=True)
    u_OR, v_RI, bias_O = reduce_rank(weight_OI, every, ridge, rank)
    variance = held_back.about(*held_back.means).yy
    share = error / variance if variance else 0.0
    return LowRankFit(output=u_OR, value=v_RI, bias=bias_O, ridge=ridge, unexplained_ratio=share)


def _centre(moments: Moments, has_bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Where second moments are taken about: the means if a bias can absorb them."""
    x_I, y_O = moments.means
    return (x_I, y_O) if has_bias else (torch.zeros_like(x_I), torch.zeros_like(y_O))


class _Trials:
    """Errors of maps fitted to some tokens on those held back; one eigendecomposition serves all ridges."""

    def __init__(self, fitted_on: Moments, held_back: Moments, prior_OI: torch.Tensor | None, has_bias: bool) -> None:
        centre = _centre(fitted_on, has_bias)
        known, asked = (moments.about(*centre).beyond(prior_OI) for moments in (fitted_on, held_back))
        values_I, vectors_II = _linalg.eigh(known.xx)
        self._values_I, self._scale, self._yy = values_I.clamp(min=0), known.xx.diagonal().mean(), asked.yy
        # W = A^T diag(1 / (values + r)) Q^T with Q the eigenvectors: everything is taken into their coordinates.
        self._a_IO, self._xy_IO = vectors_II.T @ known.xy, vectors_II.T @ asked.xy
        self._xx_II = vectors_II.T @ asked.xx @ vectors_II

    def errors(self, ridges: Sequence[float]) -> list[float]:
        """Squared error per token held back for each ridge: `yy - 2 tr(W C_xy) + tr(W C_xx W^T)`."""
        cross_I, square_II = (self._a_IO * self._xy_IO).sum(1), (self._a_IO @ self._a_IO.T) * self._xx_II
        inverses = [self._inverse(ridge) for ridge in ridges]
        return [self._yy - 2 * (each @ cross_I).item() + (each @ square_II @ each).item() for each in inverses]

    def low_rank_error(self, ridge: float, rank: int) -> float:
        """The same of the best map of this rank."""
        w_IO = self._inverse(ridge)[:, None] * self._a_IO
        u_OR = _leading(self._a_IO.T @ w_IO, rank)  # of W (C_xx + r I) W^T
        w_IR = w_IO @ u_OR
        cross, square = (w_IR * (self._xy_IO @ u_OR)).sum().item(), ((self._xx_II @ w_IR) * w_IR).sum().item()
        return self._yy - 2 * cross + square

    def _inverse(self, ridge: float) -> torch.Tensor:
        return 1 / (self._values_I + ridge * self._scale)


def _leading(symmetric_OO: torch.Tensor, rank: int) -> torch.Tensor:
    """The eigenvectors of the largest eigenvalues, [O, R]."""
    return _linalg.eigh(symmetric_OO)[1][:, -rank:].contiguous()


def _solve(
    moments: Moments, ridge: float, prior_OI: torch.Tensor | None, has_bias: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    x_I, y_O = _centre(moments, has_bias)
    central = moments.about(x_I, y_O).beyond(prior_OI)
    weight_OI = _linalg.solve(_regularised(central.xx, ridge), central.xy).T
    if prior_OI is not None:
        weight_OI = weight_OI + prior_OI
    return weight_OI, y_O - weight_OI @ x_I


def _regularised(xx_II: torch.Tensor, ridge: float) -> torch.Tensor:
    return xx_II + ridge * xx_II.diagonal().mean() * torch.eye(len(xx_II), dtype=xx_II.dtype, device=xx_II.device)


def reduce_rank(
    weight_OI: torch.Tensor, moments: Moments, ridge: float, rank: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best map of this rank in the sense of a ridge regression: reduced-rank regression.

    The outputs are projected on the leading eigenvectors U of their covariance `W (C_xx + r I) W^T`.

    Args:
        weight_OI: W, the ridge fit of all tokens with a bias and no prior.
        moments: of all tokens.
        ridge: r, relative to the mean of the covariance's diagonal.
        rank: R.

    Returns:
        U [O, R], U^T W [R, I], and the bias [O].
    """
    x_I, y_O = moments.means
    penalised_II = _regularised(moments.about(x_I, y_O).xx, ridge)
    u_OR = _leading(weight_OI @ penalised_II @ weight_OI.T, rank)
    v_RI = u_OR.T @ weight_OI
    return u_OR, v_RI, y_O - u_OR @ (v_RI @ x_I)
