"""Weights beside the model: where they lie, what they are, and how little memory writing them takes."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir import DataType

from hlap_export.export import export, external_data
from hlap_export.export.external_data import write_model
from hlap_export.on_progress import ignore_progress
from hlap_export.weights import StreamedRows, StreamedTensor, transposed
from hlap_export.weights.arranged import Transposed
from hlap_export.weights.stored import StoredTensor
from tests.export.exports import TinyExports

MIB = 2**20


class Numbered(StreamedRows):
    """A matrix that is made up when it is read, `rows_at_a_time` at a time: row i holds i, i + 1, ..."""

    def __init__(self, num_rows: int, width: int, name: str, rows_at_a_time: int) -> None:
        super().__init__(DataType.FLOAT, (num_rows, width), name)
        self.block_bytes = rows_at_a_time * width * 4

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.arange(start, stop, dtype=np.float32)[:, None] + np.arange(self.dims[1], dtype=np.float32)


def model_of(*tensors: ir.TensorProtocol) -> ir.Model:
    graph = ir.Graph([], [], nodes=[], name="weights", opset_imports={"": 18})
    for tensor in tensors:
        graph.register_initializer(ir.Value(name=tensor.name, const_value=tensor))
    return ir.Model(graph, ir_version=8)


def written(folder: Path, *tensors: ir.TensorProtocol) -> ir.Graph:
    write_model(model_of(*tensors), folder / "model.onnx", folder / "model.onnx.data", ignore_progress)
    return ir.load(folder / "model.onnx").graph


def test_every_large_tensor_starts_at_a_page_and_is_found_there(tmp_path: Path) -> None:
    odd = ir.Tensor(np.arange(1001, dtype=np.float32), name="odd")
    small = ir.Tensor(np.arange(3), name="small")
    matrix = Numbered(50, 9, "matrix", 7)
    graph = written(tmp_path, odd, small, matrix, transposed(Numbered(300, 2, "turned", 16)))
    entries = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    }
    assert {name: int(entry["offset"]) for name, entry in entries.items() if entry} == {
        "odd": 0,
        "matrix": 4096,
        "turned": 8192,
    }
    assert not entries["small"]
    assert (graph.initializers["odd"].const_value.numpy() == np.arange(1001)).all()
    assert (graph.initializers["small"].const_value.numpy() == np.arange(3)).all()
    assert (graph.initializers["matrix"].const_value.numpy() == np.add.outer(np.arange(50), np.arange(9))).all()
    assert (graph.initializers["turned"].const_value.numpy() == np.add.outer(np.arange(2), np.arange(300))).all()


def test_the_digest_is_that_of_the_file(tmp_path: Path) -> None:
    model = model_of(Numbered(50, 9, "a", 7), Numbered(999, 3, "b", 10))
    record = write_model(model, tmp_path / "m.onnx", tmp_path / "m.data", ignore_progress)
    content = (tmp_path / "m.data").read_bytes()
    assert (record.sha256, record.size_bytes) == (hashlib.sha256(content).hexdigest(), len(content))


def test_progress_is_told_in_bytes_and_ends_at_all_of_them(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    model = model_of(Numbered(50, 9, "a", 7), Numbered(999, 3, "b", 10))
    record = write_model(model, tmp_path / "m.onnx", tmp_path / "m.data", lambda *bytes_: told.append(bytes_))
    assert told == sorted(told)
    assert len(told) > 100
    assert {total for _, total in told} == {record.size_bytes} == {told[-1][0]}


def test_memory_is_a_few_blocks_whatever_the_size_of_a_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transposed, "block_bytes", 2 * MIB)
    matrices = [Numbered(4096, 4096, "plain", 64), transposed(Numbered(4096, 4096, "turned", 64))]  # 64 MiB each
    tracemalloc.start()
    try:
        write_model(model_of(*matrices), tmp_path / "m.onnx", tmp_path / "m.data", ignore_progress)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20 * MIB


class Unreadable(StreamedTensor):
    """A tensor whose checkpoint is gone."""

    def blocks(self) -> None:
        raise OSError("gone")


def test_a_weight_that_cannot_be_read_is_an_error_and_no_model_is_left(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        written(tmp_path, Numbered(999, 3, "a", 10), Unreadable(DataType.FLOAT, (300,), "b"))
    assert not (tmp_path / "model.onnx").exists()


class WritingError(Exception):
    """Raised in place of writing."""


def test_no_matrix_is_read_before_the_file_is_written(
    tiny_exports: TinyExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_exports.get("gemma2", "mixed").checkpoint
    read: set[str] = set()
    rows = StoredTensor.rows

    def watched(tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
        read.add(f"{len(tensor.dims)} axes")
        return rows(tensor, start, stop)

    def stop(*_: object) -> None:
        raise WritingError

    monkeypatch.setattr(StoredTensor, "rows", watched)
    monkeypatch.setattr(external_data, "write_model", stop)
    with pytest.raises(WritingError):
        export(checkpoint, tmp_path / "out")
    assert read == {"1 axes"}  # Gemma's gains, which are folded as 1 + w
