from __future__ import annotations

from typing import Any

import numpy as np

from hlap_export.engines import KVCache, open_session
from hlap_export.generate.sampling import Sampling, chooser
from hlap_export.generate.tokens import token_stream
from tests.tiny_engines import FakeSession, TinyEngines

PROMPT = np.array([3, 1, 4])


def counting_session() -> FakeSession:
    """After token t comes t + 1, whatever stood before it; its positions must be those of the sequence."""

    def logits(ids: Any, positions: Any) -> Any:
        assert np.array_equal(positions[0], positions[0, 0] + np.arange(ids.shape[1]))
        return np.eye(10)[(ids + 1) % 10]

    return FakeSession(logits, vocab_size=10)


def stream(session: FakeSession, **options: Any) -> list[int]:
    return list(token_stream(session, PROMPT, chooser(Sampling()), **options))


def test_the_prompt_goes_in_once_and_then_each_new_token_but_the_last() -> None:
    session = counting_session()
    assert stream(session, max_new_tokens=4) == [5, 6, 7, 8]
    assert session.seen == [(1, 3, 0), (1, 1, 3), (1, 1, 4), (1, 1, 5)]


def test_a_stop_token_is_the_last() -> None:
    assert stream(counting_session(), max_new_tokens=9, stop_ids={7, 9}) == [5, 6, 7]


def test_a_stop_token_in_the_prompt_stops_nothing() -> None:
    assert stream(counting_session(), max_new_tokens=2, stop_ids={1, 4}) == [5, 6]


def test_a_cache_that_is_written_in_place_gives_the_tokens_of_one_that_is_concatenated(
    tiny_engines: TinyEngines,
) -> None:
    written = list[list[int]]()
    for flavour in ("portable", "ort"):
        with open_session(tiny_engines.get("mistral", "mixed", "float32", flavour).folder, threads=1) as session:
            written.append(list(token_stream(session, PROMPT, chooser(Sampling()), max_new_tokens=40)))
    assert written[0] == written[1]
    assert len(set(written[0])) > 10


def test_room_for_every_token_is_made_before_the_first() -> None:
    session = counting_session()
    asked = list[int | None]()
    make_empty = session.empty_cache

    def note(batch: int, capacity: int | None = None) -> KVCache:
        asked.append(capacity)
        return make_empty(batch, capacity)

    session.empty_cache = note  # type: ignore[method-assign]
    stream(session, max_new_tokens=4)
    assert asked == [7]
