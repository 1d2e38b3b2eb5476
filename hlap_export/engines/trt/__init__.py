"""TensorRT and TensorRT-RTX: one code path over two libraries with nearly the same names."""

from hlap_export.engines.trt.backend import TensorRTBackend
from hlap_export.engines.trt.library import TENSORRT, TENSORRT_RTX, Library
from hlap_export.engines.trt.options import TensorRTOptions

__all__ = ["TENSORRT", "TENSORRT_RTX", "Library", "TensorRTBackend", "TensorRTOptions"]
