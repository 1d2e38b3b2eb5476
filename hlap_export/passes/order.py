"""Which passes make which flavour, in order."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from hlap_export.passes.constant_reshapes import ConstantReshapes
from hlap_export.passes.lower_attention import LowerAttention
from hlap_export.passes.lower_norms import LowerNorms
from hlap_export.passes.lower_rotary import LowerRotary
from hlap_export.passes.name_constants import NameConstants
from hlap_export.passes.name_dims import NameDims
from hlap_export.passes.name_nodes import NameNodes
from hlap_export.passes.simplify import Simplify
from hlap_export.passes.strip_provenance import StripProvenance
from hlap_export.passes.tied_head_as_gemm import TiedHeadAsGemm
from hlap_export.passes.transpose_linear_weights import TransposeLinearWeights

DIMS = {"batch": ("input_ids", 0), "sequence": ("input_ids", 1), "past_sequence": ("past_key_values.0.key", 2)}
"""Where each dynamic dimension of the contract is found: layer 0 always attends."""

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
