"""Weights of linear layers: transposed once at export, or shared with the embedding."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime

from hlap_export.passes.tied_head_as_fused_matmul import TiedHeadAsFusedMatMul
from hlap_export.passes.tied_head_as_gemm import TiedHeadAsGemm
from hlap_export.passes.transpose_linear_weights import TransposeLinearWeights

W = np.arange(12, dtype=np.float32).reshape(4, 3)  # [out, in], as torch keeps it
X = np.arange(18, dtype=np.float32).reshape(2, 3, 3)

LINEAR = """
<ir_version: 10, opset_import: ["" : 18]>
linear (float[B, T, 3] x, float[4, 3] w) => (float[B, T, 4] y)
{
    turned = Transpose <perm = [1, 0]> (w)
    y = MatMul (x, turned)
}
"""
TIED = """
<ir_version: 10, opset_import: ["" : 18]>
tied (float[B, T, 3] x, int64[B, T] ids, float[4, 3] w) => (float[B, T, 4] y, float[B, T, 3] rows)
{
    rows = Gather (w, ids)
    turned = Transpose <perm = [1, 0]> (w)
    y = MatMul (x, turned)
}
"""


def with_weight(text: str) -> ir.Model:
    model = ir.from_onnx_text(text)
    weight = model.graph.inputs.pop()
    weight.const_value = ir.Tensor(W, name="w")
    model.graph.register_initializer(weight)
    return model


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, feeds)]


def test_a_linear_weight_is_stored_as_matmul_reads_it_under_its_own_name() -> None:
    model = with_weight(LINEAR)
    assert TransposeLinearWeights()(model).modified
    assert [node.op_type for node in model.graph] == ["MatMul"]
    assert (model.graph.initializers["w"].const_value.numpy() == W.T).all()
    assert (run(model, x=X)[0] == X @ W.T).all()


def test_a_tied_weight_stays_as_the_embedding_needs_it_and_the_head_reads_it_through_gemm() -> None:
    model = with_weight(TIED)
    assert not TransposeLinearWeights()(model).modified
    assert TiedHeadAsGemm()(model).modified
    assert "Transpose" not in [node.op_type for node in model.graph]
    assert (model.graph.initializers["w"].const_value.numpy() == W).all()
    logits, rows = run(model, x=X, ids=np.array([[0, 3, 1], [2, 2, 2]]))
    assert (logits == X @ W.T).all()
    assert (rows[0] == W[[0, 3, 1]]).all()


def test_a_tied_head_is_one_operator_where_the_runtime_has_a_product_by_the_transpose() -> None:
    model = with_weight(TIED)
    assert TiedHeadAsFusedMatMul()(model).modified
    assert [node.op_type for node in model.graph] == ["Gather", "FusedMatMul"]
    logits, rows = run(model, x=X, ids=np.array([[0, 3, 1], [2, 2, 2]]))
    assert (logits == X @ W.T).all()
    assert (rows[0] == W[[0, 3, 1]]).all()


def test_a_weight_that_only_the_head_reads_is_neither_gemm_nor_fused() -> None:
    model = with_weight(LINEAR)
    assert not TiedHeadAsGemm()(model).modified
    assert not TiedHeadAsFusedMatMul()(model).modified


def test_a_transpose_that_something_else_reads_is_left_alone() -> None:
    text = LINEAR.replace("=> (float[B, T, 4] y)", "=> (float[B, T, 4] y, float[3, 4] z)")
    model = with_weight(text.replace("y = MatMul (x, turned)", "y = MatMul (x, turned) z = Exp (turned)"))
    assert not TransposeLinearWeights()(model).modified
