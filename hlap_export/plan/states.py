"""Residual streams of the calibration windows on disk: what enters a layer, for each layer that is needed again.

Plain files, read and written a batch at a time: what isn't being computed on takes no memory, and mapped pages would
count as the process's own. Where memory is plenty, the operating system keeps the files there anyway.

Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

FLOAT_BYTES = 4


class StateFiles:
    """The streams [N, T, D] by the layer that they enter.

    Args:
        folder: where the files lie, one for each layer.
        length: T.
        hidden_size: D.
        name: tells this model's streams from another's in the same folder.
    """

    def __init__(self, folder: Path, *, length: int, hidden_size: int, name: str = "") -> None:
        self._folder = folder
        self._shape = (length, hidden_size)
        self._name = name

    def beside(self, name: str) -> StateFiles:
        """Streams of the same shape of another model, in the same folder."""
        length, hidden_size = self._shape
        return StateFiles(self._folder, length=length, hidden_size=hidden_size, name=name)

    def write(self, layer: int, rows: slice, h_NTD: torch.Tensor) -> None:
        """Keep what enters `layer` in these windows."""
        path = self._path(layer)
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.seek(self._offset(rows))
            file.write(h_NTD.cpu().contiguous().numpy().data)

    def read(self, layer: int, rows: slice) -> torch.Tensor:
        """What enters `layer` in these windows: [N, T, D] on the CPU."""
        size = (rows.stop - rows.start) * self._shape[0] * self._shape[1]
        flat = np.fromfile(self._path(layer), np.float32, size, offset=self._offset(rows))
        return torch.as_tensor(flat).view(-1, *self._shape)

    def drop(self, layer: int) -> None:
        """Forget what enters `layer`."""
        self._path(layer).unlink(missing_ok=True)

    def _path(self, layer: int) -> Path:
        return self._folder / f"{f'{self._name}_' if self._name else ''}before_layer_{layer}.float32"

    def _offset(self, rows: slice) -> int:
        return rows.start * self._shape[0] * self._shape[1] * FLOAT_BYTES
