"""TensorRT-RTX: engines for NVIDIA's RTX GPUs, built on any machine."""

from __future__ import annotations

from hlap_export.engines.trt import TENSORRT_RTX, TensorRTBackend

BACKEND = TensorRTBackend(library=TENSORRT_RTX)
