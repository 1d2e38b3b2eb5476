"""A newer version of ONNX's operators."""

from __future__ import annotations

from typing import Any, cast

import onnx_ir as ir
from onnx import defs

from hlap_export.errors import ExportError

WIDENED = frozenset(
    (
        *("Cast", "Cos", "Elu", "Equal", "Flatten", "HardSigmoid", "HardSwish", "Identity", "Mish", "ReduceMax"),
        *("ReduceMin", "Reshape", "Round", "Selu", "Shape", "Sin", "Softplus", "Softsign", "Squeeze", "Transpose"),
        "Unsqueeze",
    )
)
"""Operators to which opsets 19 to 24 gave more types (Cast: more modes for 8-bit floats), and no other meaning."""


class RaiseOpset(ir.passes.InPlacePass):
    """Declare a graph as one of a later opset, whose new operators it may then have.

    Every operator must mean the same in both: those that the later opset doesn't define anew, and those in `WIDENED`.

    Args:
        opset: the version of ONNX's operators, at most 24.
        ir_version: of the file format, from the same release.
    """

    def __init__(self, opset: int, *, ir_version: int) -> None:
        super().__init__()
        self.opset, self.ir_version = opset, ir_version

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = model.opset_imports[""]
        for node in model.graph:
            if not node.domain and self._is_other(node.op_type, before):
                raise ExportError(
                    where=f"{node.op_type} {node.name or ''}".rstrip(),
                    expected=f"operators that mean the same in opset {before} and {self.opset}",
                    found="one that was defined anew in between",
                    fix="export with --flavour portable",
                )
        model.opset_imports[""], model.ir_version = self.opset, self.ir_version
        return ir.passes.PassResult(model, True)

    def _is_other(self, op_type: str, before: int) -> bool:
        if op_type in WIDENED or _since(op_type, self.opset) <= before:
            return False
        return defs.has(op_type, before, "")


def _since(op_type: str, opset: int) -> int:
    """The opset whose definition of the operator holds in `opset`."""
    return int(cast(Any, defs).get_schema(op_type, opset, "").since_version)
