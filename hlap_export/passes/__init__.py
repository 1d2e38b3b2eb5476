"""ONNX -> ONNX: one idea per file, in an order that `order.py` declares per flavour."""

from hlap_export.passes.order import PORTABLE

__all__ = ["PORTABLE"]
