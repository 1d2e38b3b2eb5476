"""A checkpoint's tensor, read and converted as its rows are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from hlap_export.checkpoint.tensors import CheckpointTensors, TensorRecord, require_floating
from hlap_export.errors import CheckpointError
from hlap_export.weights.streamed import StreamedRows

STORED_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of weights, as safetensors names them."""


class CheckpointRows:
    """Makes the tensors of a checkpoint available as streamed ones, by name."""

    def __init__(self, tensors: CheckpointTensors) -> None:
        self._folder = tensors.folder
        self._records = tensors.by_name
        self._data_starts = {shard.name: shard.data_start for shard in tensors.shards}

    def __contains__(self, name: str | None) -> bool:
        return name in self._records

    def tensor(self, name: str, dtype: ir.DataType) -> StreamedRows:
        """The tensor of that name, its numbers converted to `dtype`.

        Raises:
            CheckpointError: it is stored as something else than floating-point numbers.
        """
        record = self._records[name]
        require_floating(self._folder, record)
        path = self._folder / record.shard
        return StoredTensor(path, self._data_starts[record.shard] + record.data_offsets[0], record, dtype)


class StoredTensor(StreamedRows):
    """Rows of a tensor in a safetensors file; no file stays open and nothing is mapped between two calls."""

    def __init__(self, path: Path, offset: int, record: TensorRecord, dtype: ir.DataType) -> None:
        super().__init__(dtype, record.shape, record.name)
        self._path, self._offset = path, offset
        self._row_bytes = record.size_bytes // max(1, self.num_rows)
        self._stored_dtype = STORED_DTYPES[record.dtype]
        self._torch_dtype = to_torch_dtype(dtype)

    def rows(self, start: int, stop: int) -> np.ndarray:
        stored = torch.frombuffer(
            self._read(start * self._row_bytes, (stop - start) * self._row_bytes), dtype=torch.uint8
        )
        converted = stored.view(self._stored_dtype).to(self._torch_dtype)
        return converted.view(torch.uint8).numpy().view(self.dtype.numpy()).reshape(stop - start, *self.dims[1:])

    def _read(self, first: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        with self._path.open("rb", buffering=0) as file:
            file.seek(self._offset + first)
            done = 0
            while done < size:
                got = file.readinto(data[done:].data)
                if not got:
                    raise CheckpointError(
                        where=f"{self._path}: {self.name}",
                        expected=f"{size} bytes at {self._offset + first}",
                        found=f"the file ends {size - done} bytes early",
                        fix="the file was changed while it was read: run again",
                    )
                done += got
        return data
