"""Several texts at once: one prefill of all prompts, then one step for all of them until each has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hlap_export.engines import Session
from hlap_export.evaluate.rows import PAD, Row, left_padded
from hlap_export.generate.sampling import Choose

HasEnded = Callable[[list[int]], bool]
"""New tokens so far -> whether the text ends with the last one."""


def write_rows(
    session: Session, prompts: Sequence[Row], choose: Choose, has_ended: HasEnded, *, max_new_tokens: int
) -> list[list[int]]:
    """New tokens after each prompt, at most `max_new_tokens`; the one that ended a text is its last."""
    batch = left_padded(prompts)
    num_rows, prompt_length = batch.ids.shape
    capacity = prompt_length + max_new_tokens
    mask_BS = np.ones((num_rows, capacity), np.int64)
    mask_BS[:, :prompt_length] = batch.mask
    written: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(num_rows))
    ids, positions, cache = batch.ids, batch.positions, session.empty_cache(num_rows, capacity)
    for length in range(prompt_length, capacity):
        logits_B1V, cache = session.run(ids, mask_BS[:, :length], positions, cache, last_only=True)
        ids, positions = np.full((num_rows, 1), PAD, np.int64), positions[:, -1:] + 1
        for row in sorted(open_rows):
            token = choose(logits_B1V[row, -1])
            written[row].append(token)
            ids[row] = token
            if has_ended(written[row]):
                open_rows.discard(row)
        if not open_rows:
            break
    return written
