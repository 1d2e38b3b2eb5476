"""One small graph for each thing that goes wrong with TensorRT, planted at a node of layer 7."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

NODE = "model.layers.7.self_attn/Planted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hazard:
    """A graph with one thing wrong.

    Attributes:
        rule: that finds it.
        signature: the graph's inputs and outputs.
        planted: the node that is wrong.
        says: part of what was found.
        refused_with: what the real compiler says when it refuses it, a regex; None where it builds something else.
        before, after: other nodes.
    """

    rule: str
    signature: str
    planted: str
    says: str
    refused_with: str | None = None
    before: str = ""
    after: str = ""
    opset: int = 24

    @property
    def model(self) -> onnx.ModelProto:
        text = f"{self.before} {self.planted} {self.after}"
        header = f'<ir_version: 10, opset_import: ["" : {self.opset}, "com.microsoft" : 1]>'
        model = onnx.parser.parse_model(f"{header} planted {self.signature} {{ {text} }}")
        model.graph.node[len(onnx.parser.parse_graph(f"g () => () {{ {self.before} }}").node)].name = NODE
        return model


QKV = "(float16[1,4,16,64] q, float16[1,2,16,64] k, float16[1,2,16,64] v) => (float16[1,4,16,64] y)"
DECODE = "(float16[1,4,1,64] q, float16[1,2,16,64] k, float16[1,2,16,64] v) => (float16[1,4,1,64] y)"
CACHE = "(float16[1,2,64,16] c, float16[1,2,4,16] u, int64[1] w) => (float16[1,2,64,16] y)"


def _with(signature: str, more: str) -> str:
    return signature.replace(") =>", f", {more}) =>", 1)


def _heads(queries: int, size: int, tokens: int = 16, *, past: int = 16, dtype: str = "float16") -> str:
    keys = f"{dtype}[1,{queries},{past},{size}]"
    return f"({dtype}[1,{queries},{tokens},{size}] q, {keys} k, {keys} v) => ({dtype}[1,{queries},{tokens},{size}] y)"


NO_KERNEL = r"Attention operation was not supported by a dedicated kernel"
HAZARDS = (
    Hazard(
        rule="operator-unsupported",
        signature="(int32[4] x) => (int32[4] y)",
        planted="y = BitwiseAnd(x, x)",
        says="BitwiseAnd",
        refused_with=r"BitwiseAnd: false",
    ),
    Hazard(
        rule="operator-unsupported",
        signature="(float[4] x) => (float[4] y)",
        planted="y = com.microsoft.QuickGelu(x)",
        says="com.microsoft.QuickGelu",
        refused_with=r"QuickGelu: .*Plugin not found",
    ),
    Hazard(
        rule="type-unsupported",
        signature="(int32[4] x) => (int32[4] y)",
        planted="y = Sqrt(x)",
        says="x is int32, and Sqrt takes bfloat16, float, float16",
        refused_with=r"SQRT with the given input data type INT32",
    ),
    Hazard(
        rule="types-mixed",
        signature="(float16[4,8] x, float[8,4] w) => (float16[4,4] y)",
        planted="y = MatMul(x, w)",
        says="x is float16, w is float",
        refused_with=r"must have same input types\. `A` is of type Half and `B` is of type Float",
    ),
    Hazard(
        rule="types-mixed",
        signature="(bool[4] c, float16[4] x, float[4] z) => (float16[4] y)",
        planted="y = Where(c, x, z)",
        says="x is float16, z is float",
        refused_with=r"`thenInput` and `elseInput` of same types but has Half and Float",
    ),
    Hazard(
        rule="types-mixed",
        signature="(float16[1,2,4,16] x, float[64,8] cos, float[64,8] sin, int64[1,4] p) => (float16[1,2,4,16] y)",
        planted="y = RotaryEmbedding(x, cos, sin, p)",
        says="cos is float",
        refused_with=r"`cosCache` and `input` must have identical types",
    ),
    Hazard(
        rule="uint8-inside",
        signature="(float[4] x) => (float[4] y)",
        planted="b = Cast<to: int = 2>(x)",
        after="y = Cast<to: int = 1>(b)",
        says="b is uint8",
        refused_with=r"does not support UINT8 types for intermediate tensors",
    ),
    Hazard(
        rule="input-not-constant",
        signature="(float[4,8] x, int64[1] axes) => (float[4,1] y)",
        planted="y = ReduceSum(x, axes)",
        says="input axes is computed",
        refused_with=r"Axis input must resolve to a build-time constant",
    ),
    Hazard(
        rule="scatter-reduction",
        signature="(float[8] x, int64[2,1] i, float[2] u) => (float[8] y)",
        planted='y = ScatterND<reduction: string = "add">(x, i, u)',
        says="reduction 'add'",
        refused_with=r"ScatterND with reduction is not supported",
    ),
    Hazard(
        rule="scatter-reduction",
        signature="(float[8] x, int64[2] i, float[2] u) => (float[8] y)",
        planted='y = ScatterElements<reduction: string = "mul">(x, i, u)',
        says="reduction 'mul'",
        refused_with=r"Unsupported reduction type",
    ),
    Hazard(
        rule="topk-large",
        signature="(float[1,8000] x) => (float[1,5000] y, int64[1,5000] i)",
        before="k = Constant<value_ints: ints = [5000]>()",
        planted="y, i = TopK(x, k)",
        says="K = 5000",
        refused_with=r"K exceeds the maximum value allowed \(3840\)",
    ),
    Hazard(
        rule="loop-without-condition",
        signature="(int64 n, float[4] x) => (float[4] y)",
        planted="y = Loop(n, , x)<body = step (int64 i, bool c, float[4] a) => (bool d, float[4] b)"
        " { d = Identity(c) b = Add(a, a) }>",
        says="no condition",
        refused_with=r"Node input was not registered",
    ),
    Hazard(
        rule="norm-statistics",
        signature="(float[4,8] x, float[8] w) => (float[4,8] y, float[4,1] mean)",
        planted="y, mean = LayerNormalization(x, w)",
        says="the mean",
        refused_with=r"outputs for LayerNormalization nodes",
    ),
    Hazard(
        rule="attention-past",
        signature=_with(QKV, "float16[1,2,8,64] pk, float16[1,2,8,64] pv").replace(
            "y)", "y, float16[1,2,24,64] a, float16[1,2,24,64] b)"
        ),
        planted="y, a, b = Attention(q, k, v, , pk, pv)",
        says="past_key",
        refused_with=r"only supports Attention nodes with one output",
    ),
    Hazard(
        rule="attention-lengths-ignored",
        signature=_with(DECODE, "int64[1] lengths"),
        planted="y = Attention(q, k, v, , , , lengths)",
        says="ignored without an error",
    ),
    Hazard(
        rule="attention-soft-cap",
        signature=QKV,
        planted="y = Attention<softcap: float = 50.0>(q, k, v)",
        says="softcap = 50",
        refused_with=r"Setting softcap is not supported",
    ),
    Hazard(
        rule="attention-scores",
        signature=QKV.replace("y)", "y, float16[1,4,16,16] s)"),
        planted="y, , , s = Attention(q, k, v)",
        says="qk_matmul_output",
        refused_with=r"only supports Attention nodes with one output",
    ),
    Hazard(
        rule="attention-causal-alignment",
        signature=DECODE,
        planted="y = Attention<is_causal: int = 1>(q, k, v)",
        says="1 queries on 16 keys",
    ),
    Hazard(
        rule="attention-causal-and-mask",
        signature=_with(QKV, "bool[1,1,16,16] mask"),
        planted="y = Attention<is_causal: int = 1>(q, k, v, mask)",
        says="beside a mask",
        refused_with=r"mask cannot be used together with CausalMaskKind other than kNONE",
    ),
    Hazard(
        rule="attention-mask-type",
        signature=_with(QKV, "float[1,1,16,16] mask"),
        planted="y = Attention(q, k, v, mask)",
        says="mask is float, the queries are float16",
        refused_with=r"element type \(half\) differs from input 1's element type \(float\)",
    ),
    Hazard(
        rule="attention-head-counts",
        signature=QKV.replace("1,4,16", "1,5,16"),
        planted="y = Attention(q, k, v)",
        says="5 query heads on 2 KV heads",
        refused_with=r"query number of heads must be divisible by key/value number of heads",
    ),
    Hazard(
        rule="attention-head-counts",
        signature=QKV.replace("float16[1,2,16,64] v", "float16[1,2,16,32] v").replace("[1,4,16,64] y", "[1,4,16,32] y"),
        planted="y = Attention(q, k, v)",
        says="sizes 64, 64 and 32",
        refused_with=r"Key and Value must have the same shape",
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_heads(4, 64, dtype="float"),
        planted="y = Attention(q, k, v)",
        says="float32",
        refused_with=NO_KERNEL,
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_heads(1, 64),
        planted="y = Attention(q, k, v)",
        says="1 query head",
        refused_with=NO_KERNEL,
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_heads(2, 64, 1),
        planted="y = Attention(q, k, v)",
        says="2 query heads",
        refused_with=NO_KERNEL,
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_with(_heads(4, 20, 16), "bool[1,1,16,16] mask"),
        planted="y = Attention(q, k, v, mask)",
        says="heads of size 20",
        refused_with=r"Myelin.*input_layouts",
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_heads(4, 264),
        planted="y = Attention(q, k, v)",
        says="heads of size 264",
        refused_with=NO_KERNEL,
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_heads(4, 64, 1, past=24576),
        planted="y = Attention(q, k, v)",
        says="24576 cached tokens",
        refused_with=NO_KERNEL,
    ),
    Hazard(
        rule="cache-circular",
        signature=CACHE,
        planted='y = TensorScatter<axis: int = -2, mode: string = "circular">(c, u, w)',
        says="mode 'circular'",
        refused_with=r"Only linear mode is supported for now, got circular",
    ),
    Hazard(
        rule="cache-axis",
        signature=CACHE,
        planted="y = TensorScatter<axis: int = 1>(c, u, w)",
        says="axis 1",
        refused_with=r"Sequence dimension must be -2, got -3",
    ),
    Hazard(
        rule="cache-rank",
        signature="(float16[2,64,16] c, float16[2,4,16] u, int64[2] w) => (float16[2,64,16] y)",
        planted="y = TensorScatter<axis: int = -2>(c, u, w)",
        says="c has 3 dimensions",
        refused_with=r"past_cache tensor is required to be 4D, got 3D",
    ),
    Hazard(
        rule="cache-not-an-input",
        signature=CACHE,
        before="d = Relu(c)",
        planted="y = TensorScatter<axis: int = -2>(d, u, w)",
        says="d, which Relu computes",
        refused_with=r"The cache tensor must be a network input",
    ),
    Hazard(
        rule="cache-not-an-output",
        signature=CACHE,
        planted="d = TensorScatter<axis: int = -2>(c, u, w)",
        after="y = Relu(d)",
        says="d stays inside",
        refused_with=r"The output tensor must be a network output",
    ),
    Hazard(
        rule="cache-capacity",
        signature=CACHE.replace(",64,", ",N,"),
        planted="y = TensorScatter<axis: int = -2>(c, u, w)",
        says="a cache of N tokens",
        refused_with=r"KV cache tensor must have a static sequence length dimension",
    ),
)
