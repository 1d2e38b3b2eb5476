from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hlap_export.verify.parity import Parity, Row, check_parity, cut_rows
from hlap_export.verify.tokens import NON_FINITE, compare_token
from hlap_export.verify.tolerances import TOLERANCES
from tests.tiny_engines import FakeSession

VOCAB = 11
STEPS = 4
TABLE = np.random.default_rng(0).normal(size=(VOCAB, VOCAB))
IDS = np.random.default_rng(1).integers(0, VOCAB, 40)
CHECKS = (
    "prefill logits",
    "cached decode logits",
    "chunked prefill logits",
    "padded prefill logits",
    "padded decode logits",
    "mean KL divergence",
    "mean loss difference",
    "greedy agreement",
)


def model(ids: Any, positions: Any) -> Any:
    """A language model of one line: logits of the last token and its position."""
    return TABLE[ids] + 0.1 * np.asarray(positions)[..., None] * TABLE[(ids + 1) % VOCAB]


def rows() -> tuple[Row, ...]:
    """The model's own logits for a prompt of 6 and one of 4."""
    return tuple(
        Row(ids=ids, prompt_length=prompt, expected=model(ids, np.arange(ids.size)).astype(np.float32))
        for prompt, ids in zip((6, 4), cut_rows(IDS, (6, 4), STEPS), strict=True)
    )


def parity_of(logits: Callable[[Any, Any], Any]) -> Parity:
    return check_parity(FakeSession(logits, vocab_size=VOCAB), rows(), TOLERANCES["float32"])


def failed(parity: Parity) -> set[str]:
    return {check.name for check in parity.checks if not check.passed}


def test_the_model_itself_passes_every_check() -> None:
    parity = parity_of(model)
    assert tuple(check.name for check in parity.checks) == CHECKS
    assert failed(parity) == set()
    assert parity.greedy.agreement == 1.0
    assert parity.greedy.steps_agreed == STEPS
    # Alone 6 + 4 decoded and the prompt in two chunks; padded 6 + 4 and two rows decoded.
    assert parity.greedy.num_tokens == 6 + 4 + 6 + (6 + 4) + 2 * 4


def test_rows_follow_one_another_in_the_text() -> None:
    first, second = cut_rows(IDS, (6, 4), STEPS)
    np.testing.assert_array_equal(np.concatenate([first, second]), IDS[:18])
    assert (first.size, second.size) == (10, 8)


def test_the_engine_runs_prefill_decode_chunks_and_a_padded_batch() -> None:
    session = FakeSession(model, vocab_size=VOCAB)
    check_parity(session, rows(), TOLERANCES["float32"])
    decode = [(1, 1, past) for past in range(6, 10)]
    padded = [(2, 6, 0), *((2, 1, past) for past in range(6, 10))]
    assert session.seen == [(1, 6, 0), *decode, (1, 3, 0), (1, 3, 3), *padded]


def test_an_error_just_above_the_bound_fails_and_just_below_passes() -> None:
    scale = max(np.abs(model(IDS[:6], np.arange(6))).max(), 1.0)
    for factor, outcome in ((0.9, set[str]()), (1.2, {"prefill logits"})):

        def shifted(ids: Any, positions: Any, factor: float = factor) -> Any:
            logits = np.array(model(ids, positions))
            if ids.shape == (1, 6):
                logits[0, 2, 5] += factor * 1e-4 * scale
            return logits

        assert failed(parity_of(shifted)) == outcome


def test_the_place_of_the_worst_logit_counts_real_tokens_only() -> None:
    def planted(ids: Any, positions: Any) -> Any:
        logits = np.array(model(ids, positions))
        if ids.shape == (2, 6):
            logits[1, 5, 7] += 1.0  # the shorter row has 2 columns of padding: column 5 is its token 3
        return logits

    parity = parity_of(planted)
    assert failed(parity) >= {"padded prefill logits", "mean KL divergence"}
    assert failed(parity) <= {"padded prefill logits", "mean KL divergence", "greedy agreement"}
    location = parity.checks[3].location
    assert location is not None
    assert (location.batch_row, location.position, location.token) == (1, 3, 7)


def test_agreement_is_counted_as_by_hand() -> None:
    """Uniform logits against two tokens of probability a half: KL is log(V / 2), whatever the token."""
    expected = np.full((3, VOCAB), -50.0, dtype=np.float32)
    expected[:, :2] = 0.0
    row = Row(ids=IDS[:3], prompt_length=2, expected=expected)
    session = FakeSession(lambda ids, positions: np.zeros((*ids.shape, VOCAB)), vocab_size=VOCAB)
    agreement = check_parity(session, [row], TOLERANCES["float32"]).agreement[0]
    assert (agreement.check, agreement.num_tokens) == ("prefill logits", 2)
    assert agreement.mean_kl_nats == pytest.approx(math.log(VOCAB / 2))
    assert agreement.max_error_ratio == 1.0
    assert agreement.mean_error_ratio == pytest.approx((VOCAB - 2) / VOCAB)
    assert agreement.top1_agreement == 1.0  # of equal logits both take the first


def test_the_five_best_tokens_are_compared_as_sets() -> None:
    expected = np.arange(VOCAB, dtype=np.float32)
    swapped = expected.copy()
    swapped[[10, 9]] = swapped[[9, 10]]  # the best two change places: the set stays
    swapped[[6, 0]] = swapped[[0, 6]]  # the fifth falls out
    token = compare_token(swapped, expected, row=0, position=0, following=None)
    assert (token.engine_token, token.reference_token, token.reference_margin) == (9, 10, 1.0)
    assert token.shared_best == pytest.approx(4 / 5)


def long_row(length: int = 30, first: int = 20) -> Row:
    ids = IDS[:length]
    return Row(ids=ids, prompt_length=first + 1, first=first, expected=model(ids, np.arange(length))[first:])


def test_the_end_of_a_long_context_is_decoded_step_by_step() -> None:
    session = FakeSession(model, vocab_size=VOCAB)
    parity = check_parity(session, rows(), TOLERANCES["float32"], context=long_row())
    assert session.seen[-10:] == [(1, 21, 0), *((1, 1, past) for past in range(21, 30))]
    assert parity.agreement[-1].check == "long context logits"
    assert parity.agreement[-1].num_tokens == 10
    assert failed(parity) == set()


def test_an_error_in_a_late_position_alone_fails_the_long_context() -> None:
    def late(ids: Any, positions: Any) -> Any:
        return model(ids, np.where(np.asarray(positions) > 25, 0, positions))

    session = FakeSession(late, vocab_size=VOCAB)
    parity = check_parity(session, rows(), TOLERANCES["float32"], context=long_row())
    assert {check.name for check in parity.checks if not check.passed} >= {"long context logits"}
    assert not [check for check in parity.checks[:5] if not check.passed]
    location = parity.checks[5].location
    assert location is not None and location.position > 25


def test_what_the_padding_itself_produces_is_ignored() -> None:
    def noisy_padding(ids: Any, positions: Any) -> Any:
        logits = np.array(model(ids, positions))
        if ids.shape == (2, 6):
            logits[1, :2] = np.nan
        return logits

    assert failed(parity_of(noisy_padding)) == set()


def test_nan_fails_with_a_number_that_json_can_hold() -> None:
    parity = parity_of(lambda ids, positions: np.full((*ids.shape, VOCAB), np.nan))
    assert failed(parity) == set(CHECKS)
    assert parity.checks[0].value == NON_FINITE
    assert all(np.isfinite(check.value) for check in parity.checks)


def test_a_small_bias_in_every_logit_of_the_right_token_fails_on_the_loss() -> None:
    """Errors of 0.9 times the logit bound pass it; all of one sign they shift the loss beyond its own."""
    scale = max(float(np.abs(model(IDS[at], at)).max()) for at in range(10))

    def biased(ids: Any, positions: Any) -> Any:
        logits = np.array(model(ids, positions))
        following = np.append(IDS, 0)[1:]
        for row in range(ids.shape[0]):
            for column in range(ids.shape[1]):
                if ids.shape[0] == 1:
                    logits[row, column, following[positions[row, column]]] += 0.9e-4 * scale
        return logits

    assert "mean loss difference" in failed(parity_of(biased))


def test_the_first_divergence_says_where_and_by_how_much_the_reference_disagrees() -> None:
    expected = model(IDS[:10], np.arange(10))[8]
    order = np.argsort(expected)

    def swapped(ids: Any, positions: Any) -> Any:
        logits = np.array(model(ids, positions))
        if ids.shape == (1, 1) and positions[0, 0] == 8:
            logits[0, 0, order[-2]] = expected[order[-1]] + 1
        return logits

    parity = parity_of(swapped)
    divergence = parity.greedy.first_divergence
    assert divergence is not None
    assert (divergence.check, divergence.batch_row, divergence.position) == ("cached decode logits", 0, 8)
    assert (divergence.engine_token, divergence.reference_token) == (order[-2], order[-1])
    assert divergence.reference_margin_logits == pytest.approx(expected[order[-1]] - expected[order[-2]], rel=1e-5)
    assert parity.greedy.agreement == pytest.approx(1 - 1 / parity.greedy.num_tokens)
    assert parity.greedy.steps_agreed == 2  # tokens 6 and 7
