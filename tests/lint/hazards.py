"""One small graph for each thing that goes wrong with TensorRT, planted at a node of layer 7."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

NODE = "model.layers.7.self_attn/Planted"

Verdict = Literal["refused", "built"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hazard:
    """A graph with one thing wrong.

    Attributes:
        rule: that finds it.
        signature: the graph's inputs and outputs.
        planted: the node that is wrong.
        says: part of what was found.
        rtx: what the real compiler does with it: refuse it, or build something else than was meant.
        before, after: other nodes.
    """

    rule: str
    signature: str
    planted: str
    says: str
    rtx: Verdict = "refused"
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


HAZARDS = (
    Hazard(
        rule="operator-unsupported",
        signature="(int32[4] x) => (int32[4] y)",
        planted="y = BitwiseAnd(x, x)",
        says="BitwiseAnd",
    ),
    Hazard(
        rule="operator-unsupported",
        signature="(float[4] x) => (float[4] y)",
        planted="y = com.microsoft.QuickGelu(x)",
        says="com.microsoft.QuickGelu",
    ),
    Hazard(
        rule="type-unsupported",
        signature="(int32[4] x) => (int32[4] y)",
        planted="y = Sqrt(x)",
        says="x is int32, and Sqrt takes bfloat16, float, float16",
    ),
    Hazard(
        rule="types-mixed",
        signature="(float16[4,8] x, float[8,4] w) => (float16[4,4] y)",
        planted="y = MatMul(x, w)",
        says="x is float16, w is float",
    ),
    Hazard(
        rule="types-mixed",
        signature="(bool[4] c, float16[4] x, float[4] z) => (float16[4] y)",
        planted="y = Where(c, x, z)",
        says="x is float16, z is float",
    ),
    Hazard(
        rule="types-mixed",
        signature="(float16[1,2,4,16] x, float[64,8] cos, float[64,8] sin, int64[1,4] p) => (float16[1,2,4,16] y)",
        planted="y = RotaryEmbedding(x, cos, sin, p)",
        says="cos is float",
    ),
    Hazard(
        rule="uint8-inside",
        signature="(float[4] x) => (float[4] y)",
        planted="b = Cast<to: int = 2>(x)",
        after="y = Cast<to: int = 1>(b)",
        says="b is uint8",
    ),
    Hazard(
        rule="input-not-constant",
        signature="(float[4,8] x, int64[1] axes) => (float[4,1] y)",
        planted="y = ReduceSum(x, axes)",
        says="input axes is computed",
    ),
    Hazard(
        rule="scatter-reduction",
        signature="(float[8] x, int64[2,1] i, float[2] u) => (float[8] y)",
        planted='y = ScatterND<reduction: string = "add">(x, i, u)',
        says="reduction 'add'",
    ),
    Hazard(
        rule="scatter-reduction",
        signature="(float[8] x, int64[2] i, float[2] u) => (float[8] y)",
        planted='y = ScatterElements<reduction: string = "mul">(x, i, u)',
        says="reduction 'mul'",
    ),
    Hazard(
        rule="topk-large",
        signature="(float[1,8000] x) => (float[1,5000] y, int64[1,5000] i)",
        before="k = Constant<value_ints: ints = [5000]>()",
        planted="y, i = TopK(x, k)",
        says="K = 5000",
    ),
    Hazard(
        rule="loop-without-condition",
        signature="(int64 n, float[4] x) => (float[4] y)",
        planted="y = Loop(n, , x)<body = step (int64 i, bool c, float[4] a) => (bool d, float[4] b)"
        " { d = Identity(c) b = Add(a, a) }>",
        says="no condition",
    ),
    Hazard(
        rule="norm-statistics",
        signature="(float[4,8] x, float[8] w) => (float[4,8] y, float[4,1] mean)",
        planted="y, mean = LayerNormalization(x, w)",
        says="the mean",
    ),
    Hazard(
        rule="attention-past",
        signature=_with(QKV, "float16[1,2,8,64] pk, float16[1,2,8,64] pv").replace(
            "y)", "y, float16[1,2,24,64] a, float16[1,2,24,64] b)"
        ),
        planted="y, a, b = Attention(q, k, v, , pk, pv)",
        says="past_key",
    ),
    Hazard(
        rule="attention-lengths-ignored",
        signature=_with(DECODE, "int64[1] lengths"),
        planted="y = Attention(q, k, v, , , , lengths)",
        says="ignored without an error",
        rtx="built",
    ),
    Hazard(
        rule="attention-soft-cap",
        signature=QKV,
        planted="y = Attention<softcap: float = 50.0>(q, k, v)",
        says="softcap = 50",
    ),
    Hazard(
        rule="attention-scores",
        signature=QKV.replace("y)", "y, float16[1,4,16,16] s)"),
        planted="y, , , s = Attention(q, k, v)",
        says="qk_matmul_output",
    ),
    Hazard(
        rule="attention-causal-alignment",
        signature=DECODE,
        planted="y = Attention<is_causal: int = 1>(q, k, v)",
        says="1 queries on 16 keys",
        rtx="built",
    ),
    Hazard(
        rule="attention-causal-and-mask",
        signature=_with(QKV, "bool[1,1,16,16] mask"),
        planted="y = Attention<is_causal: int = 1>(q, k, v, mask)",
        says="beside a mask",
    ),
    Hazard(
        rule="attention-mask-type",
        signature=_with(QKV, "float[1,1,16,16] mask"),
        planted="y = Attention(q, k, v, mask)",
        says="mask is float, the queries are float16",
    ),
    Hazard(
        rule="attention-head-counts",
        signature=QKV.replace("1,4,16", "1,5,16"),
        planted="y = Attention(q, k, v)",
        says="5 query heads on 2 KV heads",
    ),
    Hazard(
        rule="attention-head-counts",
        signature=QKV.replace("float16[1,2,16,64] v", "float16[1,2,16,32] v").replace("[1,4,16,64] y", "[1,4,16,32] y"),
        planted="y = Attention(q, k, v)",
        says="sizes 64, 64 and 32",
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_heads(4, 64, dtype="float"),
        planted="y = Attention(q, k, v)",
        says="float32",
    ),
    Hazard(rule="attention-no-kernel", signature=_heads(1, 64), planted="y = Attention(q, k, v)", says="1 query head"),
    Hazard(
        rule="attention-no-kernel", signature=_heads(2, 64, 1), planted="y = Attention(q, k, v)", says="2 query heads"
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_with(_heads(4, 20, 16), "bool[1,1,16,16] mask"),
        planted="y = Attention(q, k, v, mask)",
        says="heads of size 20",
    ),
    Hazard(
        rule="attention-no-kernel", signature=_heads(4, 264), planted="y = Attention(q, k, v)", says="heads of size 264"
    ),
    Hazard(
        rule="attention-no-kernel",
        signature=_heads(4, 64, 1, past=24576),
        planted="y = Attention(q, k, v)",
        says="24576 cached tokens",
    ),
    Hazard(
        rule="cache-circular",
        signature=CACHE,
        planted='y = TensorScatter<axis: int = -2, mode: string = "circular">(c, u, w)',
        says="mode 'circular'",
    ),
    Hazard(
        rule="cache-axis",
        signature=CACHE,
        planted="y = TensorScatter<axis: int = 1>(c, u, w)",
        says="axis 1",
    ),
    Hazard(
        rule="cache-rank",
        signature="(float16[2,64,16] c, float16[2,4,16] u, int64[2] w) => (float16[2,64,16] y)",
        planted="y = TensorScatter<axis: int = -2>(c, u, w)",
        says="c has 3 dimensions",
    ),
    Hazard(
        rule="cache-not-an-input",
        signature=CACHE,
        before="d = Relu(c)",
        planted="y = TensorScatter<axis: int = -2>(d, u, w)",
        says="d, which Relu computes",
    ),
    Hazard(
        rule="cache-not-an-output",
        signature=CACHE,
        planted="d = TensorScatter<axis: int = -2>(c, u, w)",
        after="y = Relu(d)",
        says="d stays inside",
    ),
    Hazard(
        rule="cache-capacity",
        signature=CACHE.replace(",64,", ",N,"),
        planted="y = TensorScatter<axis: int = -2>(c, u, w)",
        says="a cache of N tokens",
    ),
)
