"""TensorRT: engines for the NVIDIA GPU of the building machine."""

from __future__ import annotations

from hlap_export.engines.trt import TENSORRT, TensorRTBackend

BACKEND = TensorRTBackend(library=TENSORRT)
