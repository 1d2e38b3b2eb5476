"""What an engine's weights take of memory once ONNX Runtime has loaded them."""

from __future__ import annotations

from hlap_export.budget.needs import Term
from hlap_export.counting import Model, stored_bytes

# ONNX Runtime packs matrices for its kernels when it loads them, and frees what it packed from a moment later.
# Measured on models of 30 M and 300 M parameters in float32.
PACKED_RATIO = 0.27


def loaded_weights(model: Model, name: str) -> tuple[Term, Term]:
    """The weights, and what comes on top while they are loaded."""
    weights = stored_bytes(model)
    return (
        Term(num_bytes=weights, why=f"{name} in {model.dtype}"),
        Term(num_bytes=PACKED_RATIO * weights, why="packing them"),
    )
