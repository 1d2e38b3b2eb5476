"""Tokens from a session, one after the other: a prefill, then one decode step for each."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from hlap_export.engines import Session
from hlap_export.engines.base import Ints
from hlap_export.generate.sampling import Choose


def token_stream(
    session: Session, prompt_ids: Ints, choose: Choose, *, max_new_tokens: int, stop_ids: Collection[int] = ()
) -> Iterator[int]:
    """Yield at most `max_new_tokens` tokens that follow the prompt [P]; one of `stop_ids` is the last, if it comes.

    Room for all of them is made before the first one.
    """
    capacity = prompt_ids.size + max_new_tokens
    mask_1S, positions_1S = np.ones((1, capacity), np.int64), np.arange(capacity)[None]
    cache = session.empty_cache(1, capacity)
    new_ids, seen = prompt_ids, 0
    for _ in range(max_new_tokens):
        total = seen + new_ids.size
        logits_11V, cache = session.run(
            new_ids[None], mask_1S[:, :total], positions_1S[:, seen:total], cache, last_only=True
        )
        token = choose(logits_11V[0, -1])
        yield token
        if token in stop_ids:
            return
        new_ids, seen = np.array([token]), total
