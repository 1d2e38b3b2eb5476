"""Token rows of different lengths as one batch, padded on the left: the end of every row is at the same place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hlap_export.engines.base import Ints

Row = tuple[int, ...]

PAD = 0
"""What stands where a row has no token: masked, so that any id will do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddedRows:
    """What a session takes.

    Attributes:
        ids: [B, T].
        mask: [B, T], 0 where a row has no token.
        positions: [B, T], counted from a row's first token.
    """

    ids: Ints
    mask: Ints
    positions: Ints


def left_padded(rows: Sequence[Row]) -> PaddedRows:
    """The rows, none of them empty, as one batch."""
    longest = max(len(row) for row in rows)
    ids_BT = np.full((len(rows), longest), PAD, np.int64)
    mask_BT = np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        ids_BT[index, longest - len(row) :] = row
        mask_BT[index, longest - len(row) :] = 1
    return PaddedRows(ids=ids_BT, mask=mask_BT, positions=np.maximum(mask_BT.cumsum(axis=1) - 1, 0))
