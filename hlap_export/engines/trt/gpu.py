"""The GPU's memory, a stream of work and recorded work, through cuda-python."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from hlap_export.errors import ArtefactError

NUMPY_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int64": np.dtype(np.int64),
}


class Stream:
    """Work that the GPU does in order."""

    def __init__(self) -> None:
        self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        self.handle = int(self.call("cudaStreamCreate"))

    def call(self, name: str, *arguments: Any) -> Any:
        """A function of the CUDA runtime: its result where it has one.

        Raises:
            ArtefactError: the runtime returns an error.
        """
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            raise ArtefactError(
                where=f"the GPU, in {name}",
                expected="no error",
                found=self._cuda.cudaGetErrorString(status)[1].decode(),
                fix="look at nvidia-smi: is the GPU's memory free, and its driver new enough?",
            )
        return results[0] if results else None

    def wait(self) -> None:
        """Until all work is done."""
        self.call("cudaStreamSynchronize", self.handle)

    def record(self, work: Callable[[], None]) -> Recording:
        """What `work` enqueues, as one piece; nothing is computed."""
        # Relaxed: the library may allocate on other threads meanwhile.
        self.call("cudaStreamBeginCapture", self.handle, self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed)
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(self.handle)  # else no later call on the stream would work
            raise
        graph = self.call("cudaStreamEndCapture", self.handle)
        executable = self.call("cudaGraphInstantiate", graph, 0)
        self.call("cudaGraphDestroy", graph)
        return Recording(self, executable)

    def close(self) -> None:
        """Destroy it."""
        self.call("cudaStreamDestroy", self.handle)


class Recording:
    """Work that was recorded once and is launched as a whole."""

    def __init__(self, stream: Stream, executable: Any) -> None:
        self._stream, self._executable = stream, executable

    def launch(self) -> None:
        """Enqueue it."""
        self._stream.call("cudaGraphLaunch", self._executable, self._stream.handle)

    def close(self) -> None:
        """Destroy it."""
        self._stream.call("cudaGraphExecDestroy", self._executable)


class DeviceTensor:
    """A tensor in the GPU's memory, zeros at first; its address never changes.

    Args:
        stream: that it is filled and read on.
        shape: of the whole.
        dtype: a key of `NUMPY_DTYPES`.
    """

    def __init__(self, stream: Stream, shape: Sequence[int], dtype: str) -> None:
        self.shape, self.dtype = tuple(shape), NUMPY_DTYPES[dtype]
        self._stream = stream
        self.num_bytes = prod(self.shape) * self.dtype.itemsize
        self.pointer = int(stream.call("cudaMalloc", max(self.num_bytes, 1)))
        stream.call("cudaMemsetAsync", self.pointer, 0, self.num_bytes, stream.handle)

    @property
    def row_bytes(self) -> int:
        """Of one element of the first dimension."""
        return self.num_bytes // self.shape[0]

    def address(self, row: int) -> int:
        """Where a row begins."""
        return self.pointer + row * self.row_bytes

    def copy_row(self, row: int, source: DeviceTensor, source_row: int) -> None:
        """Copy a row of another tensor of such rows, on the GPU."""
        self._copy(self.address(row), source.address(source_row), self.row_bytes)

    def write(self, array: NDArray[Any]) -> None:
        """Copy an array to the tensor's front; it has been read when this returns."""
        host = np.ascontiguousarray(array, self.dtype)
        assert host.nbytes <= self.num_bytes
        self._copy(self.pointer, host.ctypes.data, host.nbytes)

    def read(self, shape: Sequence[int]) -> NDArray[Any]:
        """A copy of the first numbers, as many as `shape` has."""
        host = np.empty(tuple(shape), self.dtype)
        self._copy(host.ctypes.data, self.pointer, host.nbytes)
        return host

    def _copy(self, target: int, source: int, num_bytes: int) -> None:
        # 4 is cudaMemcpyDefault: the addresses tell the direction.
        kind = importlib.import_module("cuda.bindings.runtime").cudaMemcpyKind(4)
        self._stream.call("cudaMemcpyAsync", target, source, num_bytes, kind, self._stream.handle)
        self._stream.wait()

    def close(self) -> None:
        """Give the memory back; harmless a second time."""
        pointer, self.pointer = self.pointer, 0
        if pointer:
            self._stream.call("cudaFree", pointer)
