"""Linear layers and embeddings in 4 and 8 bits, against what their stored numbers mean."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from hlap_export.export.precision import BLOCK_SIZES
from hlap_export.passes.blockwise import Blockwise
from hlap_export.passes.quantise_weights import QuantiseWeights
from hlap_export.weights import StreamedRows, transposed
from tests.passes.dequantised import PARTS, dequantised

RANDOM = np.random.default_rng(0)
V, D = 12, 64
W_VD = RANDOM.standard_normal((V, D)).astype(np.float32)
E_VD = RANDOM.standard_normal((V, D)).astype(np.float32)
IDS = np.array([[0, 11, 3], [7, 7, 1]])

LINEAR = """
<ir_version: 8, opset_import: ["" : 18]>
linear (float[B, T, 64] x, float[64, 12] w) => (float[B, T, 12] y) { y = MatMul (x, w) }
"""
BIASED = """
<ir_version: 8, opset_import: ["" : 18]>
biased (float[B, T, 64] x, float[64, 12] w, float[12] b) => (float[B, T, 12] y)
{
    product = MatMul (x, w)
    sum = Add (b, product)
    y = Sigmoid (sum)
}
"""
UNTIED = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
untied (int64[B, T] input_ids, float[12, 64] e, float[64, 12] w) => (float[B, T, 12] y, float[B, T, 64] x)
{
    x = Gather (e, input_ids)
    y = MatMul (x, w)
}
"""
TIED = """
<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]>
tied (int64[B, T] input_ids, float[B, T, 64] h, float[12, 64] w) => (float[B, T, 12] y, float[B, T, 64] x)
{
    x = Gather (w, input_ids)
    y = com.microsoft.FusedMatMul <transB = 1> (h, w)
}
"""


def with_weights(text: str, **weights: np.ndarray) -> ir.Model:
    model = ir.from_onnx_text(text)
    for value in list(model.graph.inputs):
        if value.name in weights:
            model.graph.inputs.remove(value)
            value.const_value = ir.Tensor(weights[value.name], name=value.name)
            model.graph.register_initializer(value)
    return model


def quantised(model: ir.Model, bits: int = 4, block_size: int = 16, embedding_bits: int = 8) -> ir.Model:
    linear, embedding = (Blockwise(bits=each, block_size=block_size) for each in (bits, embedding_bits))
    assert QuantiseWeights(linear, embedding)(model).modified
    return model


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, feeds)]


def meaning(model: ir.Model, name: str, bits: int, columns: int = D) -> np.ndarray:
    """The matrix [rows, columns] that the stored parts of `name` stand for."""
    stored = [model.graph.initializers[f"{name}.{part}"].const_value.numpy() for part in PARTS[bits]]
    return dequantised(*stored, bits=bits, columns=columns)


def exact_activations(*shape: int, block_size: int) -> np.ndarray:
    """Numbers that rounding activations to 8 bits leaves as they are: integers up to 127, which every block reaches."""
    x = RANDOM.integers(-127, 128, shape).astype(np.float32)
    x[..., ::block_size] = 127
    return x


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_linear_layer_computes_with_what_its_stored_weights_mean(bits: int, block_size: int) -> None:
    columns = 3 * block_size  # an odd number of blocks, whose last zero point in 4 bits has half a byte to itself
    w_VD = RANDOM.standard_normal((V, columns)).astype(np.float32)
    model = quantised(with_weights(LINEAR.replace("64", str(columns)), w=w_VD.T.copy()), bits, block_size)
    assert [node.op_type for node in model.graph] == ["MatMulNBits"]
    x = exact_activations(2, 3, columns, block_size=block_size)
    expected = x @ meaning(model, "w", bits, columns).T
    assert np.abs(run(model, x=x)[0] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_bias_is_added_by_the_product_itself(bits: int, block_size: int) -> None:
    b_V = RANDOM.standard_normal(V).astype(np.float32)
    columns = 2 * block_size
    w_VD = RANDOM.standard_normal((V, columns)).astype(np.float32) / 64  # so that the sum isn't far from the bias
    model = quantised(with_weights(BIASED.replace("64", str(columns)), w=w_VD.T.copy(), b=b_V), bits, block_size)
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "Sigmoid"]
    x = exact_activations(2, 3, columns, block_size=block_size) / 127
    for tokens in (x, x[:, :1]):
        expected = 1 / (1 + np.exp(-(tokens @ meaning(model, "w", bits, columns).T + b_V)))
        assert np.abs(run(model, x=tokens)[0] - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("text", "b"),
    [
        (BIASED.replace("float[12] b", "float[1] b"), np.ones(1, np.float32)),
        (BIASED.replace("=> (float[B, T, 12] y)", "=> (float[B, T, 12] y, float[B, T, 12] product)"), W_VD[0, :12]),
    ],
    ids=["not a number for each row", "a product that something else reads"],
)
def test_another_addition_stays(text: str, b: np.ndarray) -> None:
    model = quantised(with_weights(text, w=W_VD.T.copy(), b=b.copy()))
    assert [node.op_type for node in model.graph] == ["MatMulNBits", "Add", "Sigmoid"]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_last_block_that_is_not_full_changes_nothing(bits: int) -> None:
    text = LINEAR.replace("64", "40")
    model = quantised(with_weights(text, w=W_VD[:, :40].T.copy()), bits, 32)
    x = exact_activations(1, 5, 40, block_size=32)
    expected = x @ meaning(model, "w", bits, columns=40).T
    assert np.abs(run(model, x=x)[0] - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("embedding_bits", [4, 8])
def test_an_embedding_of_its_own_has_a_format_of_its_own(embedding_bits: int) -> None:
    model = with_weights(UNTIED, e=E_VD, w=W_VD.T.copy())
    quantised(model, bits=4, embedding_bits=embedding_bits)
    _, x = run(model, input_ids=IDS)
    assert np.allclose(x, meaning(model, "e", embedding_bits)[IDS], rtol=1e-6, atol=1e-6)
    assert {"e", "w"}.isdisjoint(model.graph.initializers)


@pytest.mark.parametrize("num_blocks", [1, 2, 3])
@pytest.mark.parametrize("block_size", BLOCK_SIZES)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_tied_embedding_reads_the_matrix_of_the_head(bits: int, block_size: int, num_blocks: int) -> None:
    columns = num_blocks * block_size
    w_VD = RANDOM.standard_normal((V, columns)).astype(np.float32)
    model = quantised(with_weights(TIED.replace(" 64]", f" {columns}]"), w=w_VD), bits, block_size)
    assert sorted(model.graph.initializers) == ["ints.12_m1", *(f"w.{part}" for part in PARTS[bits])]
    h = exact_activations(2, 3, columns, block_size=block_size)
    y, x = run(model, input_ids=IDS, h=h)
    expected = h @ meaning(model, "w", bits, columns).T
    assert np.abs(y - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.allclose(x, meaning(model, "w", bits, columns)[IDS], rtol=1e-6, atol=1e-6)


def test_an_embedding_whose_rows_are_no_whole_blocks_stays_as_it_is() -> None:
    text = TIED.replace(" 64]", " 40]")
    model = quantised(with_weights(text, w=W_VD[:, :40].copy()), 4, 32)
    assert [node.op_type for node in model.graph] == ["Gather", "MatMulNBits"]
    _, x = run(model, input_ids=IDS, h=np.zeros((1, 1, 40), np.float32))
    assert (x == W_VD[IDS][..., :40]).all()


def test_a_table_that_the_ids_do_not_index_is_left_alone() -> None:
    text = UNTIED.replace("input_ids", "positions")
    model = quantised(with_weights(text, e=E_VD, w=W_VD.T.copy()))
    assert [node.op_type for node in model.graph] == ["Gather", "MatMulNBits"]


def test_a_product_of_two_activations_is_left_alone() -> None:
    text = LINEAR.replace("=> (float[B, T, 12] y) {", "=> (float[B, T, 12] y, float[B, T, T] z) {\n").replace(
        "y = MatMul", "turned = Transpose <perm = [0, 2, 1]> (x) z = MatMul (x, turned) y = MatMul"
    )
    model = quantised(with_weights(text, w=W_VD.T.copy()))
    assert [node.op_type for node in model.graph] == ["Transpose", "MatMul", "MatMulNBits"]


class Rows(StreamedRows):
    """A matrix on disk, so to speak, that remembers how many of its rows were asked for at a time."""

    block_bytes = 3 * D * 4

    def __init__(self) -> None:
        super().__init__(ir.DataType.FLOAT, W_VD.shape, "w")
        self.asked: list[int] = []

    def rows(self, start: int, stop: int) -> np.ndarray:
        self.asked.append(stop - start)
        return W_VD[start:stop]


def test_nothing_is_computed_before_it_is_written_and_then_a_few_rows_at_a_time() -> None:
    model, rows = with_weights(LINEAR, w=W_VD.T.copy()), Rows()
    model.graph.initializers["w"].const_value = transposed(rows)
    quantised(model)
    assert rows.asked == []
    packed = model.graph.initializers["w.int4"].const_value
    assert b"".join(block.tobytes() for block in packed.blocks()) == quantised_at_once()
    assert rows.asked == [3, 3, 3, 3]


def quantised_at_once() -> bytes:
    return Blockwise(bits=4, block_size=16).quantise(W_VD)[0].tobytes()


def test_a_graph_without_weights_is_not_modified() -> None:
    blockwise = Blockwise(bits=4, block_size=16)
    assert not QuantiseWeights(blockwise, blockwise)(ir.from_onnx_text(LINEAR)).modified
