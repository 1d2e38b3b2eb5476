"""Exact algebra: what a plan does to the weights. Tensor in, tensor out, float64, no I/O."""

from hlap_export.fold.edits import LayerEdits, layer_edits

__all__ = ["LayerEdits", "layer_edits"]
