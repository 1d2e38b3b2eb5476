"""Checkpoint -> ONNX: one trace, then the passes of a flavour."""

from hlap_export.export.export import DATA_FILE, MODEL_FILE, export
from hlap_export.export.flavours import FLAVOURS
from hlap_export.export.io_contract import IOContract, TensorSpec, in_place_contract, io_contract, kv_bytes_per_token

__all__ = [
    "DATA_FILE",
    "FLAVOURS",
    "MODEL_FILE",
    "IOContract",
    "TensorSpec",
    "export",
    "in_place_contract",
    "io_contract",
    "kv_bytes_per_token",
]
