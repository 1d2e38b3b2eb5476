"""Gemma's activation in one operator instead of eight, one of them a power."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from hlap_export.passes.group_query_attention import MICROSOFT

# The constants are those of the activations' dtype: in bfloat16 they are off by up to 1/512.
ROUNDING = 1 / 256


class FastGelu(ir.passes.InPlacePass):
    """`0.5 x (1 + tanh(sqrt(2/π) (x + 0.044715 x³)))` becomes `com.microsoft::FastGelu(x)`, which is just that."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rule = pattern.RewriteRule(tanh_gelu, _fast_gelu)
        count = pattern.RewriteRuleSet([rule], commute=True).apply_to_model(model)
        if count:
            model.graph.opset_imports[MICROSOFT] = 1
        return ir.passes.PassResult(model, count > 0)


def tanh_gelu(op: Any, x: Any) -> Any:
    """The pattern that torch traces."""
    cubic = op.Mul(_about(0.044715), op.Pow(x, 3.0))
    inner = op.Mul(_about(math.sqrt(2 / math.pi)), op.Add(x, cubic))
    return op.Mul(x, op.Mul(0.5, op.Add(op.Tanh(inner), 1.0)))


def _fast_gelu(op: Any, x: Any) -> Any:
    return op.FastGelu(x, _domain=MICROSOFT)


def _about(number: float) -> Any:
    return pattern.Constant(number, rel_tol=ROUNDING)
