"""ONNX Runtime on an NVIDIA GPU: float16 and bfloat16 engines whose cache stays in the GPU's memory.

The graph is stored as it was exported and optimised when it is loaded: what the CUDA provider fuses depends on the GPU,
and a stored graph would contain its copies between devices.

A node without a CUDA kernel runs on the CPU without a word, so that what has none is refused. `GroupQueryAttention` has
kernels for queries in float16 and bfloat16 alone (contrib_ops/cuda/bert/group_query_attention.cc): float32 graphs have
no attention on the GPU, and int8 and int4 ones, whose activations are float32, neither. Of the other flavours the cache
would pass through the CPU's memory in every step.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

from hlap_export.artifacts import read_manifest
from hlap_export.engines.base import GRAPH, Compiled, Unavailable
from hlap_export.engines.ort import DATA, LEVEL, OnnxRuntimeBackend
from hlap_export.errors import ArtefactError

FLAVOUR = "ort"
DTYPES = ("float16", "bfloat16")


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
        """Copy the graph and its weights; they are optimised when they are loaded.

        Raises:
            ArtefactError: a flavour or dtype whose attention wouldn't run on the GPU.
        """
        _require_kernels(onnx)
        for name in (GRAPH, DATA):
            shutil.copyfile(onnx / name, out / name)
        return self.compiled(onnx / GRAPH, out / GRAPH)


def _require_kernels(onnx: Path) -> None:
    asked = read_manifest(onnx, kind="onnx").parameters
    if asked["flavour"] != FLAVOUR:
        raise ArtefactError(
            where=str(onnx),
            expected=f"flavour {FLAVOUR}, whose KV cache stays in the GPU's memory",
            found=f"flavour {asked['flavour']}",
            fix=f"export with --flavour {FLAVOUR} --dtype float16",
        )
    if asked["dtype"] not in DTYPES:
        raise ArtefactError(
            where=str(onnx),
            expected=f"activations in {' or '.join(DTYPES)}: there is no attention kernel for others on the GPU",
            found="float32" if asked["dtype"] == "float32" else f"float32, beside weights in {asked['dtype']}",
            fix="export with --dtype float16, or build with --engine onnxruntime",
        )


BACKEND = OnnxRuntimeCudaBackend()
