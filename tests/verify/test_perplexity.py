from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from hlap_export.checkpoint import load_model
from hlap_export.engines import open_session
from hlap_export.verify.perplexity import compare_losses, mean_interval, token_losses, window_losses
from tests.tiny import VOCAB_SIZE
from tests.tiny_engines import FakeSession, TinyEngines


def test_engine_losses_are_torchs_cross_entropy_of_the_checkpoint(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get()
    windows = np.random.default_rng(3).integers(0, VOCAB_SIZE, (3, 24))
    with open_session(engine.folder, threads=1) as session:
        found = window_losses(session, windows)
    model = load_model(engine.checkpoint, dtype=torch.float32)
    ids = torch.tensor(windows)
    with torch.inference_mode():
        expected = [float(model(input_ids=row[None], labels=row[None]).loss) for row in ids]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary() -> None:
    session = FakeSession(lambda ids, positions: np.zeros((*ids.shape, 7)), vocab_size=7)
    losses = window_losses(session, np.zeros((2, 5), dtype=np.int64))
    np.testing.assert_allclose(losses, math.log(7))
    assert compare_losses(losses, None, window_length=5).candidate.perplexity == pytest.approx(7)


def test_the_first_token_is_not_scored_and_the_last_logits_are_not_used() -> None:
    logits = np.zeros((3, 4), dtype=np.float32)
    logits[0, 2] = logits[1, 3] = 50.0
    logits[2] = np.nan
    np.testing.assert_allclose(token_losses(logits, np.array([0, 2, 3])), [0.0, 0.0], atol=1e-6)
    assert token_losses(logits, np.array([0, 1, 3]))[0] == pytest.approx(50.0)


def test_huge_logits_do_not_overflow() -> None:
    logits = np.array([[1e30, 0.0], [0.0, 0.0]], dtype=np.float32)
    assert token_losses(logits, np.array([0, 0]))[0] == 0.0


def test_standard_errors_are_over_windows_and_of_the_paired_difference() -> None:
    windows = np.array([2.0, 4.0, 3.0, 5.0])
    result = compare_losses(windows + np.array([0.11, 0.09, 0.10, 0.10]), windows, window_length=9)
    assert (result.num_windows, result.num_scored_tokens) == (4, 4 * 8)
    baseline: Any = result.baseline
    assert baseline.loss_nats_per_token == pytest.approx(3.5)
    assert baseline.perplexity == pytest.approx(math.exp(3.5))
    # By hand: squared deviations 2.25 + 0.25 + 0.25 + 2.25 = 5, over n - 1 = 3, over n = 4.
    assert baseline.standard_error_nats_per_token == pytest.approx(math.sqrt(5 / 3 / 4))
    assert result.loss_increase_nats_per_token == pytest.approx(0.10)
    assert result.loss_increase_standard_error_nats_per_token == pytest.approx(math.sqrt(0.0002 / 3 / 4))
    assert result.increase_ratio == pytest.approx(math.expm1(0.10))
    assert result.increase_ratio_low is not None and result.increase_ratio_high is not None
    # The difference is far more certain than either loss.
    assert math.expm1(0.08) <= result.increase_ratio_low < result.increase_ratio_high <= math.expm1(0.12)
    assert baseline.perplexity_low < math.exp(3.0) < math.exp(4.0) < baseline.perplexity_high


@pytest.mark.parametrize("size", [3, 5, 40])
def test_the_interval_covers_the_true_mean_about_as_often_as_it_says(size: int) -> None:
    """Plain percentiles of the bootstrap cover it 75 times in a hundred where there are three windows."""
    random = np.random.default_rng(7)
    intervals = [mean_interval(random.normal(3.0, 0.5, size)) for _ in range(200)]
    covered = sum(low <= 3.0 <= high for low, high in intervals)
    assert 183 <= covered <= 197


def test_an_engine_that_computes_no_numbers_has_a_perplexity_that_json_can_hold() -> None:
    session = FakeSession(lambda ids, positions: np.full((*ids.shape, 7), np.nan), vocab_size=7)
    losses = window_losses(session, np.zeros((2, 5), dtype=np.int64))
    assert compare_losses(losses, None, window_length=5).candidate.perplexity > 1e200
    broken_once = compare_losses(np.array([3.0, losses[0]]), np.array([3.0, 3.0]), window_length=5)
    assert broken_once.model_validate_json(broken_once.model_dump_json()) == broken_once
