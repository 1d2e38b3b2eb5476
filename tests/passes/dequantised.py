"""What a quantised matrix means, by the operators' documentation: (q - zero point) * scale, low bits first.

Without zero points it is the middle of the range, 8 or 128.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PARTS = {4: ("int4", "scales"), 8: ("int8", "scales", "zero_points")}
"""What a matrix is stored as; in 4 bits without zero points, as onnxruntime-genai's builder does."""


def dequantised(
    packed: NDArray[np.uint8],
    scales: NDArray[np.float32],
    zero_points: NDArray[np.uint8] | None = None,
    *,
    bits: int,
    columns: int,
) -> NDArray[np.float64]:
    """The matrix [N, columns] in float64."""
    rows, blocks = scales.shape
    values = unpacked(packed.reshape(rows, -1), bits).reshape(rows, blocks, -1).astype(np.float64)
    middle = np.full((rows, blocks), 2 ** (bits - 1), np.float64)
    zeros = middle if zero_points is None else unpacked(zero_points, bits)[:, :blocks].astype(np.float64)
    return ((values - zeros[..., None]) * scales[..., None]).reshape(rows, -1)[:, :columns]


def unpacked(data: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return data
    return np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), -1)
