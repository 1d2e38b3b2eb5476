"""What onnxscript already knows about making graphs smaller."""

from __future__ import annotations

from typing import Any, cast

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer, rewriter
from onnxscript.rewriter.rules import common as rules

FOLDED_ELEMENTS = 1 << 16
"""Largest constant that is computed at export: any vector of a decoder (Gemma's 1 + w), no matrix of a real one."""

MERGED_ELEMENTS = 16
"""Largest constants that are merged when equal: axes and scalars, not two norms that happen to be all ones."""

RULES = (
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.reshape_reshape_rule,
    rules.squeeze_reshape_1d_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
)
"""Those of onnxscript's rewrite rules that a decoder can have a use for: trying all 46 takes several times as long."""


class Simplify(ir.passes.InPlacePass):
    """Fold constants, apply onnxscript's rules, merge equal expressions, drop what nothing reads.

    Twice, because a rule may leave something to fold. Parameters are never folded away as matrices: the passes that
    transpose weights run before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = model.graph.num_nodes()
        for _ in range(2):
            cast(Any, optimizer).fold_constants(
                model,
                onnx_shape_inference=True,
                input_size_limit=FOLDED_ELEMENTS,
                output_size_limit=FOLDED_ELEMENTS,
            )
            rewriter.rewrite(model, RULES)
        ir.passes.Sequential(
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(size_limit=MERGED_ELEMENTS),
            common.CommonSubexpressionEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedOpsetsPass(),
        )(model)
        return ir.passes.PassResult(model, model.graph.num_nodes() != before)
