"""Fitted weights on disk, one file for each tensor, until they are saved beside the plan: deep models have many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch

PREFIX = "fitted_"


class FittedTensors(Mapping[str, torch.Tensor]):
    """Tensors in float32 by name, each read from its file whenever it is asked for.

    Args:
        folder: where the files lie; those of another fit are removed from it.
        fit: tells this fit's files from any other's, so that what belongs to an earlier one is gone rather than wrong.
    """

    def __init__(self, folder: Path, fit: str) -> None:
        self._folder, self._fit = folder, fit
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in folder.glob(f"{PREFIX}*"):
            path.unlink()

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Write a tensor [...] in float32 on the CPU to its file."""
        self._path(name).write_bytes(tensor.contiguous().numpy().data)
        self._shapes[name] = tuple(tensor.shape)

    def __getitem__(self, name: str) -> torch.Tensor:
        shape = self._shapes[name]
        return torch.as_tensor(np.fromfile(self._path(name), np.float32)).view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def _path(self, name: str) -> Path:
        return self._folder / f"{PREFIX}{self._fit}_{name}.float32"
