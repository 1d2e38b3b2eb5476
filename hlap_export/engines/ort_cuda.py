"""ONNX Runtime on an NVIDIA GPU: float16, bfloat16 and float32 engines whose cache stays in the GPU's memory.

The graph is stored as it was exported and optimised when it is loaded: what the CUDA provider fuses depends on the GPU,
and a stored graph would contain its copies between devices.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from hlap_export.engines.base import GRAPH, Compiled, Unavailable
from hlap_export.engines.ort import DATA, LEVEL, OnnxRuntimeBackend


class OnnxRuntimeCudaBackend(OnnxRuntimeBackend):
    """Run with ONNX Runtime's CUDA provider."""

    name = "onnxruntime-cuda"
    provider = "CUDAExecutionProvider"
    load_level = LEVEL

    def why_unavailable(self) -> Unavailable | None:
        """Say so when the installed onnxruntime has no CUDA provider, or when that finds no GPU."""
        if problem := super().why_unavailable():
            return problem
        onnxruntime = importlib.import_module("onnxruntime")
        providers = onnxruntime.get_available_providers()
        if self.provider not in providers:
            return Unavailable(
                found=f"the installed onnxruntime has {', '.join(providers)} and no {self.provider}",
                fix="pip uninstall onnxruntime, then pip install 'hlap-export[gpu]'",
            )
        try:
            onnxruntime.OrtValue.ortvalue_from_shape_and_type([1], 1, "cuda")
        except Exception as error:  # its exception classes derive from Exception alone
            return Unavailable(
                found=f"the CUDA provider can't use a GPU: {' '.join(str(error).split())[:200]}",
                fix="check with nvidia-smi that the driver works and shows a GPU",
            )
        return None

    def compile(self, onnx: Path, out: Path) -> Compiled:
        """Copy the graph and its weights; they are optimised when they are loaded."""
        for name in (GRAPH, DATA):
            shutil.copyfile(onnx / name, out / name)
        return self.compiled(onnx / GRAPH, out / GRAPH)


BACKEND = OnnxRuntimeCudaBackend()
