"""A newer version of ONNX's operators."""

from __future__ import annotations

import onnx_ir as ir

UNCHANGED = (
    *("Add", "And", "Cast", "Concat", "Cos", "Div", "Equal", "Erf", "Exp", "Gather", "GatherND", "Gemm", "Greater"),
    *("LessOrEqual", "MatMul", "Mul", "Neg", "Pow", "Range", "Reciprocal", "ReduceMean", "Reshape", "Shape"),
    *("Sigmoid", "Sin", "Slice", "Softmax", "Split", "Sqrt", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze"),
    "Where",
)
"""Operators that a decoder is traced to and that opsets 19 to 24 gave more types, and no other meaning."""


class RaiseOpset(ir.passes.InPlacePass):
    """Declare a graph of opset 18 as one of a later opset, whose new operators it may then have.

    Args:
        opset: the version of ONNX's operators.
        ir_version: of the file format, from the same release.
        new: operators that later opsets brought.
    """

    def __init__(self, opset: int, *, ir_version: int, new: tuple[str, ...]) -> None:
        super().__init__()
        self.opset, self.ir_version = opset, ir_version
        self._known = {*UNCHANGED, *new}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        unknown = {node.op_type for node in model.graph if not node.domain} - self._known
        assert not unknown, f"did opset {self.opset} change {', '.join(sorted(unknown))}?"
        model.opset_imports[""], model.ir_version = self.opset, self.ir_version
        return ir.passes.PassResult(model, True)
