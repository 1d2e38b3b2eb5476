"""Regression from moments equals regression on the tokens themselves, done by NumPy's least squares and its SVD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hlap_export.plan.gain import GainMoments, fit_gain
from hlap_export.plan.regression import Moments, fit_linear, fit_low_rank

NUM_INPUTS, NUM_OUTPUTS = 7, 5
# Both sides compute in float64, the one from products of the tokens, which squares their condition number.
RELATIVE_ERROR = 1e-8
TRUTH = torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=torch.Generator().manual_seed(1)).double()


def tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated inputs and targets that they explain in part; neither has mean zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(NUM_INPUTS, NUM_INPUTS, generator=torch.Generator().manual_seed(0)).double()
    x = torch.randn(count, NUM_INPUTS, generator=generator).double() @ mixing + 2.0
    return x, x @ TRUTH.T + 0.7 * torch.randn(count, NUM_OUTPUTS, generator=generator).double() - 3.0


def moments(x: torch.Tensor, y: torch.Tensor, batch: int = 11) -> Moments:
    sums = Moments(x.shape[1], y.shape[1])
    for start in range(0, len(x), batch):
        sums.update(x[None, start : start + batch], y[None, start : start + batch])
    return sums


FITTED, HELD = tokens(60, seed=2), tokens(25, seed=3)
EVERY = tuple(torch.cat(pair) for pair in zip(FITTED, HELD, strict=True))


def by_numpy(
    x: torch.Tensor, y: torch.Tensor, ridge: float, *, has_bias: bool = True, prior: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression as ordinary least squares with rows added: W [O, I] and the bias [O]."""
    inputs, targets = x.numpy(), y.numpy()
    before = np.zeros((targets.shape[1], inputs.shape[1])) if prior is None else prior.double().numpy()
    mean_x, mean_y = (inputs.mean(0), targets.mean(0)) if has_bias else (0.0, 0.0)
    centred = inputs - mean_x
    added = np.sqrt(ridge * (centred**2).mean(0).mean() * len(x)) * np.eye(inputs.shape[1])
    left = targets - mean_y - centred @ before.T
    solution, *_ = np.linalg.lstsq(
        np.vstack([centred, added]), np.vstack([left, np.zeros((len(added), left.shape[1]))])
    )
    weight = solution.T + before
    return weight, mean_y - weight @ mean_x if has_bias else np.zeros(targets.shape[1])


@pytest.mark.parametrize("ridge", [1e-6, 0.3])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("has_prior", [True, False])
def test_the_fit_is_numpys_on_all_tokens(ridge: float, has_bias: bool, has_prior: bool) -> None:
    prior = torch.randn(NUM_OUTPUTS, NUM_INPUTS, generator=torch.Generator().manual_seed(5)) if has_prior else None
    found = fit_linear(moments(*FITTED), moments(*HELD), [ridge], prior_OI=prior, has_bias=has_bias)
    weight, bias = by_numpy(*EVERY, ridge, has_bias=has_bias, prior=prior)
    np.testing.assert_allclose(found.weight.numpy(), weight, rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR)
    np.testing.assert_allclose(found.bias.numpy(), bias, rtol=RELATIVE_ERROR, atol=RELATIVE_ERROR)


@pytest.mark.parametrize("has_prior", [True, False])
def test_the_ridge_is_the_one_that_does_best_on_the_tokens_held_back(has_prior: bool) -> None:
    ridges = [1e-4, 1e-2, 1.0, 10.0]
    few = tuple(part[:8] for part in FITTED)  # hardly more tokens than inputs: the smallest ridge overfits
    prior = TRUTH if has_prior else None  # the best prior there is: the more ridge the better
    shares: list[float] = []
    for ridge in ridges:
        weight, bias = by_numpy(*few, ridge, prior=prior)
        error = ((HELD[0].numpy() @ weight.T + bias - HELD[1].numpy()) ** 2).sum()
        shares.append(float(error / ((HELD[1] - HELD[1].mean(0)) ** 2).sum()))
    assert shares.index(min(shares)) > 0
    found = fit_linear(moments(*few), moments(*HELD), ridges, prior_OI=prior)
    assert found.ridge == ridges[shares.index(min(shares))]
    assert found.unexplained_ratio == pytest.approx(min(shares), rel=RELATIVE_ERROR)


@pytest.mark.parametrize("rank", [1, 3, NUM_OUTPUTS])
def test_a_reduced_rank_keeps_the_leading_singular_directions_of_the_predictions(rank: int) -> None:
    ridge = 0.2
    found = fit_low_rank(moments(*FITTED), moments(*HELD), [ridge], rank)
    u, v, bias = found.output, found.value, found.bias
    assert (u.shape, v.shape) == ((NUM_OUTPUTS, rank), (rank, NUM_INPUTS))
    expected, inputs = low_rank_by_numpy(*EVERY, ridge, rank), EVERY[0].numpy()
    np.testing.assert_allclose((u @ v).numpy(), expected, atol=1e-7)
    np.testing.assert_allclose(bias.numpy(), EVERY[1].numpy().mean(0) - (u @ v).numpy() @ inputs.mean(0), atol=1e-7)


def low_rank_by_numpy(x: torch.Tensor, y: torch.Tensor, ridge: float, rank: int) -> np.ndarray:
    """The map whose predictions, the ridge's added rows included, are the best of that rank: W [O, I]."""
    weight, _ = by_numpy(x, y, ridge)
    centred = x.numpy() - x.numpy().mean(0)
    rows = np.vstack([centred, np.sqrt(ridge * (centred**2).mean() * len(centred)) * np.eye(NUM_INPUTS)])
    left, values, right = np.linalg.svd(rows @ weight.T, full_matrices=False)
    solution, *_ = np.linalg.lstsq(rows, left[:, :rank] * values[:rank] @ right[:rank])
    return solution.T


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_ridge_of_a_low_rank_map_is_the_one_that_does_best_at_that_rank(rank: int) -> None:
    ridges = [1e-4, 1e-2, 0.1, 1.0, 10.0]
    few = tuple(part[:9] for part in FITTED)
    shares: list[float] = []
    for ridge in ridges:
        weight = low_rank_by_numpy(*few, ridge, rank)
        predicted = few[1].numpy().mean(0) + (HELD[0].numpy() - few[0].numpy().mean(0)) @ weight.T
        shares.append(float(((predicted - HELD[1].numpy()) ** 2).sum() / ((HELD[1] - HELD[1].mean(0)) ** 2).sum()))
    found = fit_low_rank(moments(*few), moments(*HELD), ridges, rank)
    assert found.ridge == ridges[shares.index(min(shares))]
    assert found.unexplained_ratio == pytest.approx(min(shares), rel=1e-7)


def test_each_channels_gain_is_its_own_least_squares() -> None:
    z, y = EVERY[0][:, :NUM_OUTPUTS], EVERY[1]
    sums = GainMoments(NUM_OUTPUTS), GainMoments(NUM_OUTPUTS)
    for part, rows in zip(sums, (slice(0, 60), slice(60, None)), strict=True):
        part.update(z[None, rows], y[None, rows])
    found = fit_gain(*sums)
    for channel in range(NUM_OUTPUTS):
        (expected,), *_ = np.linalg.lstsq(z[:, channel, None].numpy(), y[:, channel].numpy())
        assert found.factors[channel].item() == pytest.approx(expected, rel=RELATIVE_ERROR)
    trial = (z[:60] * y[:60]).sum(0) / (z[:60] ** 2).sum(0)
    share = ((y[60:] - trial * z[60:]) ** 2).sum() / (y[60:] ** 2).sum()
    assert found.unexplained_ratio == pytest.approx(share.item(), rel=RELATIVE_ERROR)


def test_a_channel_that_is_always_zero_keeps_a_finite_gain() -> None:
    z, y = EVERY[0][:, :NUM_OUTPUTS].clone(), EVERY[1]
    z[:, 2] = 0
    sums = GainMoments(NUM_OUTPUTS), GainMoments(NUM_OUTPUTS)
    for part, rows in zip(sums, (slice(0, 60), slice(60, None)), strict=True):
        part.update(z[None, rows], y[None, rows])
    found = fit_gain(*sums)
    assert found.factors.isfinite().all()
    assert found.factors[2] == 1
    assert 0 < found.unexplained_ratio < 1.1
