"""Rules for any operator: is it imported, on these types, with these inputs known?"""

from __future__ import annotations

import onnx_ir as ir

from hlap_export.lint.graph import dims, has_output, input_at, is_constant
from hlap_export.lint.operators import CUSTOM, MATRIX, main_value
from hlap_export.lint.rules import DOCUMENTED, ERROR, PUBLISHED, TRIED, WARNING, NodeRule

LARGEST_TOPK = 3839

SAME_TYPE = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "MatMul", "Gemm", "Max", "Min", "Concat", "PRelu"), None),
    **dict.fromkeys(("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Mod", "Sum", "Mean"), None),
    "Where": (1, 2),
    "Attention": (0, 1, 2),
    "RotaryEmbedding": (0, 1, 2),
    "TensorScatter": (0, 1),
}
"""Inputs that must be of one type, by operator; None for all of them."""

CONSTANT_INPUT = {
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"), 1),
    **dict.fromkeys(("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Squeeze", "Unsqueeze"), 1),
    "CumSum": 1,
    "OneHot": 1,
}
"""The input that must be known when the engine is built, by operator."""


def _unknown_operator(node: ir.Node) -> str | None:
    if node.domain == "" and (node.op_type in MATRIX.types or node.op_type in CUSTOM):
        return None
    if node.domain == "trt" and node.op_type in CUSTOM:
        return None
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _unknown_type(node: ir.Node) -> str | None:
    value = main_value(node)
    if node.domain or node.op_type not in MATRIX.types or value is None or value.dtype is None:
        return None
    # Doubles have a rule of their own, and so has uint8 in the middle of a graph.
    if value.dtype in MATRIX.types[node.op_type] or value.dtype in (ir.DataType.DOUBLE, ir.DataType.UINT8):
        return None
    known = ", ".join(sorted(str(dtype).lower() for dtype in MATRIX.types[node.op_type]))
    return f"{value.name} is {str(value.dtype).lower()}, and {node.op_type} takes {known}"


def _mixed_types(node: ir.Node) -> str | None:
    if node.domain or node.op_type not in SAME_TYPE:
        return None
    indices = SAME_TYPE[node.op_type] or range(len(node.inputs))
    values = [value for value in (input_at(node, index) for index in indices) if value is not None]
    typed = [(value.name, str(value.dtype).lower()) for value in values if value.dtype is not None]
    if len({dtype for _, dtype in typed}) < 2:
        return None
    return ", ".join(f"{name} is {dtype}" for name, dtype in typed)


def _bytes_inside(node: ir.Node) -> str | None:
    outputs = set(node.graph.outputs) if node.graph is not None else set[ir.Value]()
    inside = [value for value in node.outputs if value.dtype == ir.DataType.UINT8 and value not in outputs]
    return f"{inside[0].name} is uint8" if inside else None


def _doubles(node: ir.Node) -> str | None:
    wide = [value for value in node.outputs if value.dtype == ir.DataType.DOUBLE]
    return f"{wide[0].name} is float64" if wide else None


def _unknown_when_built(node: ir.Node) -> str | None:
    index = CONSTANT_INPUT[node.op_type]
    value = input_at(node, index)
    return None if value is None or is_constant(value) else f"input {value.name} is computed"


def _reduction(node: ir.Node) -> str | None:
    attribute = node.attributes.get("reduction")
    reduction = "none" if attribute is None else attribute.as_string()
    return None if reduction == "none" else f"reduction {reduction!r}"


def _too_many_of_the_largest(node: ir.Node) -> str | None:
    k = input_at(node, 1)
    tensor = None if k is None else ir.convenience.get_const_tensor(k)
    known = 0 if tensor is None else int(tensor.numpy().reshape(-1)[0])
    return f"K = {known}" if known > LARGEST_TOPK else None


def _unsorted(node: ir.Node) -> str | None:
    attribute = node.attributes.get("sorted")
    return "sorted = 0" if attribute is not None and attribute.as_int() == 0 else None


def _no_condition(node: ir.Node) -> str | None:
    return "no condition" if input_at(node, 1) is None else None


def _branches_differ(node: ir.Node) -> str | None:
    then, other = (node.attributes[name].as_graph().outputs for name in ("then_branch", "else_branch"))
    for first, second in zip(then, other, strict=True):
        ranks = [None if shape is None else len(shape) for shape in (dims(first), dims(second))]
        if None not in ranks and ranks[0] != ranks[1]:
            return f"{first.name} has {ranks[0]} dimensions and {second.name} has {ranks[1]}"
    return None


def _statistics(node: ir.Node) -> str | None:
    return "the mean is an output too" if has_output(node, 1) or has_output(node, 2) else None


def _narrow_positions(node: ir.Node) -> str | None:
    positions = input_at(node, 3)
    if positions is None or positions.dtype in (None, ir.DataType.INT64):
        return None
    return f"{positions.name} is {str(positions.dtype).lower()}"


OPERATOR_RULES = (
    NodeRule(
        name="operator-unsupported",
        severity=ERROR,
        operators=(),
        found=_unknown_operator,
        expected="operators that its parser imports",
        fix="export with --flavour trt, or --flavour portable for other compilers",
        source=PUBLISHED,
    ),
    NodeRule(
        name="type-unsupported",
        severity=ERROR,
        operators=(),
        found=_unknown_type,
        expected="a type that the operator is imported with",
        fix="insert a Cast, or export with --dtype float16, bfloat16 or float32",
        source=PUBLISHED,
    ),
    NodeRule(
        name="types-mixed",
        severity=ERROR,
        operators=(),
        found=_mixed_types,
        expected="inputs of one type: networks are strongly typed, and nothing is cast by itself",
        fix="insert a Cast before the node, or export again without editing the graph",
        source=TRIED,
    ),
    NodeRule(
        name="uint8-inside",
        severity=ERROR,
        operators=(),
        found=_bytes_inside,
        expected="uint8 as inputs and outputs of the network alone",
        fix="compute in int32, or dequantise at the input",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="float64",
        severity=WARNING,
        operators=(),
        found=_doubles,
        expected="float32 or narrower",
        fix="cast to float32: it is computed and clamped as float32 anyway",
        source=PUBLISHED,
    ),
    NodeRule(
        name="input-not-constant",
        severity=ERROR,
        operators=tuple(CONSTANT_INPUT),
        found=_unknown_when_built,
        expected="axes and depths that are known when the engine is built",
        fix="make it an initializer, for example with `polygraphy surgeon sanitize --fold-constants`",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="scatter-reduction",
        severity=ERROR,
        operators=("ScatterND", "ScatterElements"),
        found=_reduction,
        expected="reduction none",
        fix="gather, reduce, then scatter; a KV cache is written by TensorScatter (--flavour trt)",
        source=f"{PUBLISHED}; {TRIED}, which refuses ScatterElements too",
    ),
    NodeRule(
        name="topk-large",
        severity=ERROR,
        operators=("TopK",),
        found=_too_many_of_the_largest,
        expected=f"K of at most {LARGEST_TOPK}: the parser takes more, the builder doesn't",
        fix="take fewer, or choose them outside of the engine",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="topk-unsorted",
        severity=DOCUMENTED,
        operators=("TopK",),
        found=_unsorted,
        expected="sorted = 1",
        fix="leave the attribute out",
        source=PUBLISHED,
    ),
    NodeRule(
        name="loop-without-condition",
        severity=ERROR,
        operators=("Loop",),
        found=_no_condition,
        expected="a condition, though ONNX lets it be left out",
        fix="pass a constant true",
        source=TRIED,
    ),
    NodeRule(
        name="if-ranks",
        severity=ERROR,
        operators=("If",),
        found=_branches_differ,
        expected="branches whose outputs have equally many dimensions",
        fix="unsqueeze the smaller one",
        source=PUBLISHED,
    ),
    NodeRule(
        name="norm-statistics",
        severity=ERROR,
        operators=("LayerNormalization",),
        found=_statistics,
        expected="the normalised output alone",
        fix="compute the statistics with ReduceMean",
        source=f"{PUBLISHED}; {TRIED}",
    ),
    NodeRule(
        name="rotary-positions",
        severity=DOCUMENTED,
        operators=("RotaryEmbedding",),
        found=_narrow_positions,
        expected="int64 position ids",
        fix="cast them to int64",
        source=PUBLISHED,
    ),
)
