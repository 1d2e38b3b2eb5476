"""ONNX -> ONNX: one idea per file, in an order that `order.py` declares per flavour."""

from hlap_export.passes.order import PORTABLE, ort

__all__ = ["PORTABLE", "ort"]
