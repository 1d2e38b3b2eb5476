"""Checkpoint folders, dense or pruned: their layout, their tensors, and loading them."""

from hlap_export.checkpoint.layout import LayerAttention, ModelLayout, layout_of, read_config, read_layout
from hlap_export.checkpoint.loading import load_model, load_tokenizer
from hlap_export.checkpoint.tensors import open_tensors

__all__ = [
    "LayerAttention",
    "ModelLayout",
    "layout_of",
    "load_model",
    "load_tokenizer",
    "open_tensors",
    "read_config",
    "read_layout",
]
