"""ONNX's own GELU."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from hlap_export.passes.fast_gelu import tanh_gelu


class GeluOperator(ir.passes.InPlacePass):
    """`0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))` becomes `Gelu(x)`, tanh's approximation, of opset 20 and later.

    In half precision torch's form rounds its constants and a power; the operator is left to compute as well as it can.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rule = pattern.RewriteRule(tanh_gelu, _gelu)
        count = pattern.RewriteRuleSet([rule], commute=True).apply_to_model(model)
        return ir.passes.PassResult(model, count > 0)


def _gelu(op: Any, x: Any) -> Any:
    return op.Gelu(x, approximate="tanh")
