"""What a rule is: a row that says where it looks, what it wants there, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from hlap_export.lint.operators import MATRIX, RTX_PARSER
from hlap_export.lint.report import Severity

ERROR: Mapping[str, Severity] = {"tensorrt": "error", "tensorrt-rtx": "error"}
WARNING: Mapping[str, Severity] = {"tensorrt": "warning", "tensorrt-rtx": "warning"}
NOTE: Mapping[str, Severity] = {"tensorrt": "note", "tensorrt-rtx": "note"}
DOCUMENTED: Mapping[str, Severity] = {"tensorrt": "error"}
"""TensorRT's documents forbid it; TensorRT-RTX's parser takes it."""
SEEN_ON_RTX: Mapping[str, Severity] = {"tensorrt": "warning", "tensorrt-rtx": "error"}
"""TensorRT-RTX refused it; TensorRT, whose kernels are others, wasn't tried."""

TRIED = f"tried on {RTX_PARSER}"
PUBLISHED = f"{MATRIX.source} (TensorRT {MATRIX.version})"


@dataclass(frozen=True, kw_only=True, slots=True)
class NodeRule:
    """One thing that a node may do wrong.

    Attributes:
        name: how findings call it.
        severity: by target; a target that isn't listed doesn't mind.
        operators: it looks at these; empty for all.
        found: what is wrong with a node, in words; None if nothing is.
        expected: what it wants.
        fix: what to do.
        source: where this is known from.
    """

    name: str
    severity: Mapping[str, Severity]
    operators: tuple[str, ...]
    found: Callable[[ir.Node], str | None]
    expected: str
    fix: str
    source: str
