"""Which passes make which flavour, in order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from hlap_export.passes.attention_operator import AttentionOperator
from hlap_export.passes.constant_reshapes import ConstantReshapes
from hlap_export.passes.drop_unread_inputs import DropUnreadInputs
from hlap_export.passes.fast_gelu import FastGelu
from hlap_export.passes.gelu_operator import GeluOperator
from hlap_export.passes.group_query_attention import GroupQueryAttention
from hlap_export.passes.keep_last_tokens import KeepLastTokens
from hlap_export.passes.lower_attention import LowerAttention
from hlap_export.passes.lower_norms import LowerNorms
from hlap_export.passes.lower_rotary import LowerRotary
from hlap_export.passes.merge_value_projections import MergeValueProjections
from hlap_export.passes.name_constants import NameConstants
from hlap_export.passes.name_dims import NameDims
from hlap_export.passes.name_nodes import NameNodes
from hlap_export.passes.norm_operator import NormOperator
from hlap_export.passes.pack_projections import PackProjections
from hlap_export.passes.quantise_weights import QuantiseWeights
from hlap_export.passes.raise_opset import RaiseOpset
from hlap_export.passes.rotary_operator import RotaryOperator
from hlap_export.passes.scatter_cache import ScatterCache
from hlap_export.passes.select_tokens import SelectTokens
from hlap_export.passes.simplify import Simplify
from hlap_export.passes.skip_norms import SkipNorms
from hlap_export.passes.strip_provenance import StripProvenance
from hlap_export.passes.tabulate_rotary import TabulateRotary
from hlap_export.passes.tied_head_as_fused_matmul import TiedHeadAsFusedMatMul
from hlap_export.passes.tied_head_as_gemm import TiedHeadAsGemm
from hlap_export.passes.transpose_linear_weights import TransposeLinearWeights

DIMS = {"batch": ("input_ids", 0), "sequence": ("input_ids", 1), "past_sequence": ("past_key_values.0.key", 2)}
"""Where each dynamic dimension of the contract is found: layer 0 always attends."""

IN_PLACE_DIMS = {"batch": ("input_ids", 0), "sequence": ("input_ids", 1), "capacity": ("past_key_values.0.key", 2)}

PORTABLE: tuple[ir.passes.PassBase, ...] = (
    TransposeLinearWeights(),  # before folding, which would do it by copying
    TiedHeadAsGemm(),
    Simplify(),
    ConstantReshapes(),  # needs the tracer's shapes, so before nodes without any
    LowerAttention(),
    LowerNorms(),
    LowerRotary(),
    common.RemoveUnusedNodesPass(),  # the Shape nodes that computed reshape targets
    common.RemoveUnusedOpsetsPass(),  # the tracer's own operators are gone
    NameNodes(wrapper="model"),
    NameConstants(),
    NameDims(DIMS),
    StripProvenance(),  # after naming, which reads the tracer's notes
    common.ShapeInferencePass(),
    common.CheckerPass(full_check=False),
)


def ort(num_positions: int, quantise: QuantiseWeights | None = None) -> tuple[ir.passes.PassBase, ...]:
    """The passes of flavour `ort`: ONNX Runtime's own operators, one cache buffer that is written in place.

    Args:
        num_positions: the most tokens of a sequence, for which rotary angles are tabulated.
        quantise: how weights are stored in fewer bits; None keeps them as they are.
    """
    return (
        TransposeLinearWeights(),
        TiedHeadAsFusedMatMul(),
        Simplify(),
        ConstantReshapes(),
        MergeValueProjections(),
        TabulateRotary(num_positions),
        GroupQueryAttention(),
        common.RemoveUnusedNodesPass(),  # masks, angles and concatenated caches: nothing reads them any more
        FastGelu(),
        PackProjections(),
        KeepLastTokens(),
        SkipNorms(),
        LowerNorms(),  # those that follow no addition
        # A norm's gain isn't folded into the matrices of a value-only layer: the norm's operator can't be without one.
        *([quantise] if quantise else []),  # after the passes that make matrices of others
        common.RemoveUnusedNodesPass(),
        DropUnreadInputs(),
        common.RemoveUnusedOpsetsPass(),
        NameNodes(wrapper="model"),
        NameConstants(),
        NameDims(DIMS),
        StripProvenance(),
        common.ShapeInferencePass(),
        common.CheckerPass(full_check=False),
    )


def trt(num_positions: int) -> tuple[ir.passes.PassBase, ...]:
    """The passes of flavour `trt`: ONNX's newest operators, one cache buffer of fixed capacity, nothing left implicit.

    Args:
        num_positions: the most tokens of a sequence, for which rotary angles are tabulated.
    """
    return (
        TransposeLinearWeights(),
        TiedHeadAsGemm(),
        Simplify(),
        ConstantReshapes(),
        GeluOperator(),
        MergeValueProjections(),
        TabulateRotary(num_positions),
        RotaryOperator(),
        SelectTokens(),  # while attention is one node
        ScatterCache(),
        AttentionOperator(),
        LowerAttention(),  # of the layers that have no fused kernel
        NormOperator(),
        common.RemoveUnusedNodesPass(),  # masks, angles and concatenated caches: nothing reads them any more
        DropUnreadInputs(),
        common.RemoveUnusedOpsetsPass(),
        RaiseOpset(24, ir_version=12),
        NameNodes(wrapper="model"),
        NameConstants(),
        NameDims(IN_PLACE_DIMS),
        StripProvenance(),
        common.ShapeInferencePass(),
        common.CheckerPass(full_check=False),
    )
