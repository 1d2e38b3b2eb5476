"""Checkpoint folders, dense or pruned: their layout, their tensors, and loading them."""

from hlap_export.checkpoint.layout import LayerAttention, ModelLayout, layout_of, read_config, read_layout
from hlap_export.checkpoint.loading import check_weights, load_model, load_tokenizer

__all__ = [
    "LayerAttention",
    "ModelLayout",
    "check_weights",
    "layout_of",
    "load_model",
    "load_tokenizer",
    "read_config",
    "read_layout",
]
