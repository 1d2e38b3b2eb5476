"""What an engine must compute: its checkpoint's logits in float32 torch, layer by layer.

Layers that don't fit in memory are loaded one at a time, once for all rows. The outcome is that of the whole model.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What the reference computes.

    Attributes:
        logits: of each row [T, V], or of its last tokens alone.
        num_streamed_layers: layers that were loaded one at a time.
    """

    logits: tuple[Logits, ...]
    num_streamed_layers: int


def reference_of(
    checkpoint: Path, rows: Sequence[Ids], *, firsts: Sequence[int] | None = None, max_memory: int | None = None
) -> Reference:
    """Run each row [T] alone, without a cache; everything that was loaded for it is freed at the end.

    Args:
        checkpoint: dense or pruned.
        rows: token ids.
        firsts: for each row, the first token whose logits are wanted; None for those of all tokens.
        max_memory: most bytes of RAM for the whole process; None for what the machine has free.

    Raises:
        CheckpointError: the checkpoint can't be read.
        BudgetError: not even one layer fits in memory.
    """
    import torch

    from hlap_export.checkpoint.decoder import Batch, open_decoder

    longest = Batch(windows=1, length=max(row.size for row in rows))
    decoder = open_decoder(checkpoint, batch=longest, copies=len(rows), max_memory=max_memory)
    with torch.inference_mode():
        states = [decoder.at_rest(decoder.embed(torch.tensor(row)[None])) for row in rows]
        for index in range(decoder.num_layers):
            with decoder.layer(index) as layer:
                states = [decoder.at_rest(layer(h_NTD)) for h_NTD in states]
        wanted = [h_NTD[:, first:] for h_NTD, first in zip(states, firsts or [0] * len(rows), strict=True)]
        logits = tuple(decoder.head.logits(h_NTD)[0].numpy() for h_NTD in wanted)
    return Reference(logits=logits, num_streamed_layers=decoder.placement.num_streamed_layers)
