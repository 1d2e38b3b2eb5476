"""What a quantised matrix means, by the operators' documentation: (q - zero point) * scale, low bits first."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def dequantised(
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8],
    *,
    bits: int,
    columns: int,
) -> NDArray[np.float64]:
    """The matrix [N, columns] in float64."""
    rows, blocks = scales.shape
    values = unpacked(packed.reshape(rows, -1), bits).reshape(rows, blocks, -1).astype(np.float64)
    zeros = unpacked(zero_points, bits)[:, :blocks].astype(np.float64)
    return ((values - zeros[..., None]) * scales[..., None]).reshape(rows, -1)[:, :columns]


def unpacked(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)
