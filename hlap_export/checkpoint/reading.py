"""Read weights from safetensors, whole or by rows, in small blocks: nothing is mapped or stays open between two reads.

A mapped file would count as the process's memory until it is closed; here a read takes its result and one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import FileIO

import numpy as np
import torch

from hlap_export.checkpoint.tensors import CheckpointTensors, TensorRecord, require_floating
from hlap_export.errors import CheckpointError

BLOCK_BYTES = 16 * 2**20
STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of weights, as safetensors names them."""


class WeightReader:
    """The tensors of a checkpoint by name, converted to float32 while they are read."""

    def __init__(self, tensors: CheckpointTensors) -> None:
        self._folder = tensors.folder
        self._records = tensors.by_name
        self._data_starts = {shard.name: shard.data_start for shard in tensors.shards}

    def __contains__(self, name: str) -> bool:
        return name in self._records

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows `start` to `stop` of the tensor, all of them by default, in float32.

        Raises:
            CheckpointError: it isn't stored as floating-point numbers, or the file ends early.
        """
        record = self._records[name]
        stop = record.shape[0] if stop is None else stop
        result = torch.empty((stop - start, *record.shape[1:]), dtype=torch.float32)
        step = max(1, BLOCK_BYTES // self._row_bytes(record))
        with self._open(record) as file:
            for first in range(start, stop, step):
                last = min(first + step, stop)
                result[first - start : last - start] = self._rows(file, record, first, last)
        return result

    def read_rows(self, name: str, rows: Sequence[int]) -> torch.Tensor:
        """Single rows [len(rows), ...] of the tensor, in the order that they are asked for, in float32.

        Raises:
            CheckpointError: it isn't stored as floating-point numbers, or the file ends early.
        """
        record = self._records[name]
        result = torch.empty((len(rows), *record.shape[1:]), dtype=torch.float32)
        with self._open(record) as file:
            for index, row in enumerate(rows):
                result[index] = self._rows(file, record, row, row + 1)[0]
        return result

    def _open(self, record: TensorRecord) -> FileIO:
        require_floating(self._folder, record)
        return (self._folder / record.shard).open("rb", buffering=0)

    def _rows(self, file: FileIO, record: TensorRecord, start: int, stop: int) -> torch.Tensor:
        """Rows as they are stored."""
        row_bytes = self._row_bytes(record)
        file.seek(self._data_starts[record.shard] + record.data_offsets[0] + start * row_bytes)
        data = np.empty((stop - start) * row_bytes, np.uint8)
        done = 0
        while done < data.size:  # the kernel may give less than it is asked for
            got = file.readinto(data[done:].data)
            if not got:
                raise CheckpointError(
                    where=f"{self._folder / record.shard}: {record.name}",
                    expected="a complete safetensors file",
                    found=f"it ends {data.size - done} bytes early",
                    fix="the file was changed while it was read: run again",
                )
            done += got
        return torch.as_tensor(data).view(STORED_DTYPES[record.dtype]).view(stop - start, *record.shape[1:])

    @staticmethod
    def _row_bytes(record: TensorRecord) -> int:
        return record.size_bytes // record.shape[0]
