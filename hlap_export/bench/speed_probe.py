"""Run in a fresh process by `roofline`: how fast this machine multiplies and reads, as JSON.

python -m hlap_export.bench.speed_probe
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MIB = 2**20
MATRIX_SIZE = 1536
ROW = 1024
BUFFER_BYTES = tuple(size * MIB for size in (1, 4, 16, 64, 256))
SECONDS = 0.15  # for each number


def probe() -> dict[str, Any]:
    """The fastest of several repeats of each, as a limit asks for."""
    square = np.ones((MATRIX_SIZE, MATRIX_SIZE), np.float32)
    out = np.empty_like(square)
    product = _fastest(lambda: np.matmul(square, square, out=out))
    return {
        "flops_per_second": 2 * MATRIX_SIZE**3 / product,
        "reads": [{"buffer_bytes": size, "bytes_per_second": _read_speed(size)} for size in BUFFER_BYTES],
    }


def _read_speed(size: int) -> float:
    matrix, vector = np.ones((size // ROW // 4, ROW), np.float32), np.ones(ROW, np.float32)
    out = np.empty(matrix.shape[0], np.float32)
    return matrix.nbytes / _fastest(lambda: np.matmul(matrix, vector, out=out))


def _fastest(action: Callable[[], object]) -> float:
    """Seconds of the fastest repeat; the first of them allocates and starts threads."""
    best, began = float("inf"), time.perf_counter()
    repeats = 0
    while repeats < 3 or time.perf_counter() - began < SECONDS:
        started = time.perf_counter()
        action()
        best = min(best, time.perf_counter() - started)
        repeats += 1
    return max(best, 1e-9)


if __name__ == "__main__":
    json.dump(probe(), sys.stdout)
