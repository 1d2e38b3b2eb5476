"""Likelihoods and written rows on a session whose logits are known, against sums done one text at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hlap_export.evaluate import likelihood as module
from hlap_export.evaluate.likelihood import Continuation, likelihoods
from hlap_export.evaluate.rows import left_padded
from hlap_export.evaluate.writing import write_rows
from tests.tiny_engines import FakeSession

VOCAB = 11
TABLE = np.random.default_rng(3).standard_normal((VOCAB, 40, VOCAB)) * 3


def by_token_and_position(ids: Any, positions: Any) -> Any:
    """Logits that change with the token, and with its place in its own row."""
    return TABLE[ids, positions]


def session() -> FakeSession:
    return FakeSession(by_token_and_position, vocab_size=VOCAB)


def naive(text: Continuation, longest: int = 40) -> tuple[float, bool]:
    """Log probability of one text alone, token by token."""
    every = (text.context + text.scored)[-(longest + 1) :]
    total, greedy = 0.0, True
    for index in range(len(every) - len(text.scored), len(every)):
        logits = TABLE[every[index - 1], index - 1]
        total += logits[every[index]] - np.log(np.exp(logits).sum())
        greedy &= int(logits.argmax()) == every[index]
    return total, greedy


TEXTS = [
    Continuation(context=(1, 2, 3, 4), scored=(5, 6)),
    Continuation(context=(7,), scored=(8,)),
    Continuation(context=(1, 2, 3, 4, 5, 6, 7), scored=(1, 2, 3, 9, 10)),
    Continuation(context=(7,), scored=(int(TABLE[7, 0].argmax()),)),
    Continuation(context=(2, 2), scored=(3,)),
]


def test_rows_end_at_the_same_place_and_count_their_own_positions() -> None:
    batch = left_padded([(5, 6, 7), (8,)])
    assert batch.ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert batch.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.positions.tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_batch_gives_what_each_text_gives_alone(batch_size: int) -> None:
    scored = likelihoods(session(), TEXTS, batch_size=batch_size, longest=40)
    for text, got in zip(TEXTS, scored, strict=True):
        expected, greedy = naive(text)
        assert got.log_probability_nats == pytest.approx(expected, rel=1e-6)
        assert got.is_greedy == greedy
    assert [got.is_greedy for got in scored] == [False, False, False, True, False]


def test_a_context_that_is_too_long_loses_its_beginning() -> None:
    got = likelihoods(session(), [TEXTS[2]], batch_size=1, longest=6)[0]
    assert got.log_probability_nats == pytest.approx(naive(TEXTS[2], longest=6)[0], rel=1e-6)
    assert got.log_probability_nats != pytest.approx(naive(TEXTS[2])[0], rel=1e-3)


def test_answers_of_one_token_share_one_row_and_need_its_last_logits_alone() -> None:
    asked, only_last = session(), list[bool]()
    run = asked.run

    def spy(*arguments: Any, last_only: bool = False) -> Any:
        only_last.append(last_only)
        return run(*arguments, last_only=last_only)

    asked.run = spy  # type: ignore[method-assign]
    choices = [Continuation(context=(1, 2, 3), scored=(answer,)) for answer in range(VOCAB)]
    scored = likelihoods(asked, choices, batch_size=4, longest=40)
    assert asked.seen == [(1, 3, 0)]
    assert only_last == [True]
    assert sum(np.exp(got.log_probability_nats) for got in scored) == pytest.approx(1)


def test_batches_shrink_where_their_logits_would_be_large(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [Continuation(context=(1,) * length, scored=(2, 3)) for length in (20, 19, 3, 2)]
    monkeypatch.setattr(module, "LOGITS_BYTES", 2 * 20 * VOCAB * 4)
    asked = session()
    likelihoods(asked, texts, batch_size=4, longest=40)
    assert [batch for batch, _, _ in asked.seen] == [1, 2, 1]


def greedy(logits_V: Any) -> int:
    return int(logits_V.argmax())


def test_rows_are_written_as_each_would_be_alone_and_stop_by_themselves() -> None:
    prompts = [(1, 2, 3, 4, 5), (6,), (7, 8)]
    together = write_rows(session(), prompts, greedy, lambda new: new[-1] % 3 == 0, max_new_tokens=9)
    for prompt, written in zip(prompts, together, strict=True):
        every, expected = list(prompt), list[int]()
        while len(expected) < 9 and not (expected and expected[-1] % 3 == 0):
            expected.append(int(TABLE[every[-1], len(every) - 1].argmax()))
            every.append(expected[-1])
        assert written == expected
    assert len({len(written) for written in together}) > 1


def test_writing_ends_when_every_row_has() -> None:
    asked = session()
    assert [len(row) for row in write_rows(asked, [(1,), (2, 3)], greedy, lambda new: True, max_new_tokens=9)] == [1, 1]
    assert asked.seen == [(2, 2, 0)]
