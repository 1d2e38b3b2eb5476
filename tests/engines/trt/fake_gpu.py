"""A GPU made of the CPU: its memory is the process's own, and ONNX Runtime computes what a plan would.

It has what `hlap_export.engines.trt` asks of cuda-python and of a TensorRT context, and is as strict as they are:
shapes within the profile, an address for every tensor, work that is recorded remembers addresses and computes nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

from hlap_export.engines.trt.phases import ShapeRange

ELEMENTS = {"tensor(float)": 1, "tensor(float16)": 10, "tensor(int64)": 7}
OK = 0


class FakeCuda:
    """`cuda.bindings.runtime`, as far as it is called."""

    def __init__(self) -> None:
        self.allocated: dict[int, Any] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.num_launched = 0
        self.cudaMemcpyKind = int
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802 - CUDA's names
        return OK, 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert self.recording is None, "waiting while recording is an error in CUDA"
        return (OK,)

    def cudaMalloc(self, num_bytes: int) -> tuple[int, int]:  # noqa: N802
        memory = np.full(num_bytes + 64, 0xAB, np.uint8)  # not zeros: whoever needs them must write them
        self.allocated[memory.ctypes.data] = memory
        return OK, memory.ctypes.data

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.allocated[pointer]
        return (OK,)

    def cudaMemsetAsync(self, pointer: int, value: int, num_bytes: int, stream: int) -> tuple[int]:  # noqa: N802
        ctypes.memset(pointer, value, num_bytes)
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        ctypes.memmove(target, source, num_bytes)
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        self.recording = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, Any]:  # noqa: N802
        recorded, self.recording = self.recording, None
        return OK, recorded

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, Any]:  # noqa: N802
        return OK, graph

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy  # noqa: N815

    def cudaGraphLaunch(self, executable: Any, stream: int) -> tuple[int]:  # noqa: N802
        self.num_launched += 1
        for work in executable:
            work()
        return (OK,)


class FakeContext:
    """An execution context of one phase."""

    def __init__(self, graph: Path, cuda: FakeCuda, shapes: dict[str, ShapeRange]) -> None:
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._cuda, self._ranges = cuda, shapes
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        allowed = self._ranges[name]
        within = zip(allowed.least, shape, allowed.most, strict=True)
        assert all(least <= dim <= most for least, dim, most in within), f"{name} {shape} isn't within {allowed}"
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self._addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self._shapes), dict(self._addresses)

        def work() -> None:
            self._compute(shapes, addresses)

        if self._cuda.recording is None:
            work()
        else:
            self._cuda.recording.append(work)
        return True

    def _compute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        binding = self._session.io_binding()
        for node in self._session.get_inputs():
            binding.bind_input(node.name, "cpu", 0, ELEMENTS[node.type], shapes[node.name], addresses[node.name])
        logits = (*shapes["logits_indices"], self._session.get_outputs()[0].shape[-1])
        for node in self._session.get_outputs():
            shape = shapes.get(node.name.replace("present", "past_key_values"), logits)
            binding.bind_output(node.name, "cpu", 0, ELEMENTS[node.type], shape, addresses[node.name])
        self._session.run_with_iobinding(binding)
