"""The sequences that engine and reference both compute: rows of different prompt lengths, and a long one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hlap_export.verify.options import CONTEXT_STEPS, Lengths, VerifyOptions
from hlap_export.verify.parity import LONG_CONTEXT, PADDED_DECODE, PADDED_PREFILL, Row, cut_rows
from hlap_export.verify.reference import reference_of

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """The parity rows and the long one, with the reference's logits.

    Attributes:
        rows: of different prompt lengths, with equally many tokens after the prompt.
        context: the long one; None where it wouldn't be longer than the others.
        num_streamed_layers: layers of the reference that were loaded one at a time.
    """

    rows: tuple[Row, ...]
    context: Row | None
    num_streamed_layers: int

    def of_check(self, check: str) -> tuple[Row, ...]:
        """The rows that a check runs."""
        if check == LONG_CONTEXT and self.context is not None:
            return (self.context,)
        return self.rows if check in (PADDED_PREFILL, PADDED_DECODE) else self.rows[:1]


def sequences_of(ids: Ids, reference: Path, lengths: Lengths, options: VerifyOptions) -> Sequences:
    """Cut token ids into rows and let the reference compute them.

    Args:
        ids: of a text; read again from the start where it is too short for the long row.
        reference: checkpoint folder.
        lengths: of the rows.
        options: memory of the reference.
    """
    cut = cut_rows(ids, lengths.prompt_lengths, lengths.decode_steps)
    long_ids = np.resize(np.roll(ids, -lengths.parity_tokens), lengths.context_length)
    long_prompt = lengths.context_length - CONTEXT_STEPS
    prompts, firsts = [*lengths.prompt_lengths], [0] * len(cut)
    if lengths.context_length:
        cut, prompts, firsts = (*cut, long_ids), [*prompts, long_prompt], [*firsts, long_prompt - 1]
    expected = reference_of(reference, cut, firsts=firsts, max_memory=options.max_memory)
    rows = [
        Row(ids=row, prompt_length=prompt, expected=logits, first=first)
        for row, prompt, logits, first in zip(cut, prompts, expected.logits, firsts, strict=True)
    ]
    context = rows.pop() if lengths.context_length else None
    return Sequences(rows=tuple(rows), context=context, num_streamed_layers=expected.num_streamed_layers)


def random_ids(vocab_size: int, lengths: Lengths, seed: int) -> Ids:
    """As many ids as the rows take."""
    count = lengths.parity_tokens + lengths.context_length
    return np.random.default_rng(seed).integers(0, vocab_size, count, dtype=np.int64)
