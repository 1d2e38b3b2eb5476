"""Which operators TensorRT's parser imports, and on which types: the published matrix as data.

A type is that of the operator's main input (`main_value`): conditions, indices and masks have rules of their own.
Operators that aren't listed are unsupported, those that the matrix marks "N" included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

T = ir.DataType
FLOATS = frozenset({T.FLOAT, T.FLOAT16, T.BFLOAT16})
SMALL_FLOATS = frozenset({T.FLOAT, T.FLOAT16})
INTS = frozenset({T.INT32, T.INT64})
NUMBERS = FLOATS | INTS
ANY = NUMBERS | {T.BOOL}
BOOLS = frozenset({T.BOOL})
QUANTISED = frozenset({T.INT8, T.INT4, T.FLOAT8E4M3FN, T.FLOAT4E2M1})

TARGETS = ("tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """What one version of the parser takes.

    Attributes:
        source: where this is published.
        version: of TensorRT.
        opsets: first and last version of ONNX's operators.
        types: of each operator's main input.
    """

    source: str
    version: str
    opsets: tuple[int, int]
    types: Mapping[str, frozenset[ir.DataType]]


def _listed(types: frozenset[ir.DataType], operators: str) -> dict[str, frozenset[ir.DataType]]:
    return dict.fromkeys(operators.split(), types)


MATRIX = Matrix(
    source="onnx-tensorrt docs/operators.md at 2f3fa34",
    version="11.0",
    opsets=(9, 24),
    types={
        **_listed(
            FLOATS,
            "Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip Conv ConvTranspose Cos "
            "Cosh CumSum Dropout Einsum Elu Erf Exp Floor GRU Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool "
            "GroupNormalization HardSigmoid HardSwish Hardmax ImageScaler InstanceNormalization IsInf LRN LSTM "
            "LayerNormalization LeakyRelu Log LogSoftmax LpNormalization LpPool MatMul MaxPool "
            "MeanVarianceNormalization PRelu ParametricSoftplus QuantizeLinear RMSNormalization RNN RandomNormal "
            "RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize RotaryEmbedding Round ScaledTanh "
            "Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu Upsample",
        ),
        **_listed(SMALL_FLOATS, "DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign"),
        **_listed(INTS, "BlackmanWindow HammingWindow HannWindow"),  # their input is a length
        **_listed(
            NUMBERS,
            "Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual IsNaN Less LessOrEqual Max Mean "
            "Min Mod Mul Neg Pad Pow Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean "
            "ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign "
            "SpaceToDepth Sub Sum TopK",
        ),
        **_listed(
            ANY,
            "Concat Expand EyeLike Flatten Gather GatherElements GatherND Identity If Loop OneHot Reshape "
            "ReverseSequence Shape Size Slice Split Squeeze Tile Transpose Trilu Unsqueeze Where",
        ),
        **_listed(BOOLS, "And Not Or Xor"),
        **_listed(ANY | {T.UINT8}, "Cast CastLike"),
        **_listed(ANY | QUANTISED, "Constant ConstantOfShape"),
        **_listed(QUANTISED, "DequantizeLinear"),
        **_listed(FLOATS | {T.INT8, T.FLOAT8E4M3FN}, "Attention"),
        **_listed(FLOATS | {T.INT32}, "TensorScatter"),
        **_listed(frozenset({T.FLOAT}), "STFT"),
    },
)

CUSTOM = frozenset({"TRT_Attention", "TRT_QuantizedAttention", "TRT_KVCacheUpdate"})
"""TensorRT's own operators, in ONNX's domain or in "trt" (docs/TRT_custom_ops.md at 2f3fa34)."""

RTX_PARSER = "the parser of TensorRT-RTX 1.7.1"
"""What was tried on a CPU, node by node: it takes the same matrix, and more that TensorRT doesn't."""


def main_value(node: ir.Node) -> ir.Value | None:
    """The value whose type the matrix speaks of."""
    if node.op_type in ("Constant", "ConstantOfShape", "Shape", "Size"):
        return None  # what they read is a shape, or anything
    index = 1 if node.op_type == "Where" else 0
    return node.inputs[index] if len(node.inputs) > index else None
