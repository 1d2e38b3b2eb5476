"""A GPU made of the CPU: its memory is the process's own, and ONNX Runtime computes what a plan would.

It has what `hlap_export.engines.trt` asks of cuda-python and of a TensorRT context, and is as strict as they are:
shapes within the profile, an address for every tensor, work that is recorded remembers addresses and computes nothing,
and can't be launched once its context has been told another shape.
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
OK, OUT_OF_MEMORY = 0, 2
ALIGNMENT = 256


class FakeCuda:
    """`cuda.bindings.runtime`, as far as it is called."""

    def __init__(self) -> None:
        self.allocated: dict[int, Any] = {}
        self.room = 2**40
        self.num_executables = 0
        self.recording: list[Callable[[], None]] | None = None
        self.num_launched = 0
        self.num_profiles = 2
        self.profiles: list[int] = []
        self.cudaMemcpyKind = int
        self.cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeRelaxed=2)

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802 - CUDA's names
        return OK, 77

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        assert self.recording is None, "waiting while recording is an error in CUDA"
        return (OK,)

    def cudaMalloc(self, num_bytes: int) -> tuple[int, int]:  # noqa: N802
        if num_bytes > self.room:
            return OUT_OF_MEMORY, 0
        self.room -= num_bytes
        memory = np.full(num_bytes + 2 * ALIGNMENT, 0xAB, np.uint8)  # not zeros: whoever needs them must write them
        pointer = -(-memory.ctypes.data // ALIGNMENT) * ALIGNMENT
        self.allocated[pointer] = memory
        return OK, pointer

    def cudaGetErrorString(self, status: int) -> tuple[int, bytes]:  # noqa: N802
        return OK, {OUT_OF_MEMORY: b"out of memory"}[status]

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
        self.num_executables += 1
        return OK, graph

    def cudaGraphDestroy(self, graph: Any) -> tuple[int]:  # noqa: N802
        return (OK,)

    def cudaGraphExecDestroy(self, executable: Any) -> tuple[int]:  # noqa: N802
        self.num_executables -= 1
        return (OK,)

    def cudaGraphLaunch(self, executable: Any, stream: int) -> tuple[int]:  # noqa: N802
        self.num_launched += 1
        for work in executable:
            work()
        return (OK,)


class FakeContext:
    """An execution context of one phase, which writes down in `problems` why it returns false."""

    def __init__(self, graph: Path, cuda: FakeCuda, shapes: dict[str, ShapeRange], problems: list[str]) -> None:
        self._session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self._cuda, self._ranges, self._problems = cuda, shapes, problems
        self._has_run_so = False
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._cuda.profiles.append(index)
        return index < self._cuda.num_profiles or self._refuse(f"no profile {index}")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        allowed = self._ranges[name]
        within = zip(allowed.least, shape, allowed.most, strict=True)
        if not all(least <= dim <= most for least, dim, most in within):
            return self._refuse(f"{name} {shape} isn't within {allowed.least} and {allowed.most}")
        if self._shapes.get(name) != tuple(shape):
            self._shapes, self._has_run_so = {**self._shapes, name: tuple(shape)}, False
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        if name not in {node.name for node in (*self._session.get_inputs(), *self._session.get_outputs())}:
            return self._refuse(f"no tensor {name}")
        if pointer % ALIGNMENT:
            return self._refuse(f"{name} isn't aligned to {ALIGNMENT} bytes")
        self._addresses[name] = pointer
        return True

    def _refuse(self, reason: str) -> bool:
        self._problems.append(reason)
        return False

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = self._shapes, dict(self._addresses)

        def work() -> None:
            assert shapes is self._shapes, "the recording is of a context that has other shapes now"
            self._compute(shapes, addresses)

        if self._cuda.recording is None:
            work()
            self._has_run_so = True
        elif not self._has_run_so:
            return self._refuse("new shapes must be run once before they are recorded")
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
