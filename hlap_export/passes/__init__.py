"""ONNX -> ONNX: one idea per file, in an order that `order.py` declares per flavour."""

from hlap_export.passes.blockwise import Blockwise
from hlap_export.passes.order import PORTABLE, ort, trt
from hlap_export.passes.quantise_weights import QuantiseWeights

__all__ = ["PORTABLE", "Blockwise", "QuantiseWeights", "ort", "trt"]
