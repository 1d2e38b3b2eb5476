"""Engines in 8 and 4 bits against the float checkpoint, of a trained model: a random one has no accuracy to lose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from hlap_export import reference_model
from hlap_export.artifacts import read_manifest
from hlap_export.engines import build
from hlap_export.errors import CheckFailed
from hlap_export.export import export
from hlap_export.hub import resolve_model
from hlap_export.verify import VerifyOptions, VerifyReport, verify
from tests.tiny_engines import altered

OPTIONS = VerifyOptions(windows=4, window_length=128, threads=1)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The reference model's engine of a dtype, made when it is first asked for."""
    root = tmp_path_factory.mktemp("quantised")

    def made(dtype: str) -> Path:
        if not (root / dtype).exists():
            export(resolve_model(None), root / f"{dtype}.onnx", flavour="ort", dtype=dtype)
            build(root / f"{dtype}.onnx", root / dtype)
        return root / dtype

    return made


def verified(folder: Path) -> VerifyReport:
    return verify(folder, resolve_model(None), text=reference_model.evaluation_text(), options=OPTIONS)


@pytest.mark.parametrize(("dtype", "least_error"), [("int8", 1e-3), ("int4", 2e-2)])
def test_a_quantised_engine_stays_within_the_bounds_of_its_dtype(
    engine: Callable[[str], Path], dtype: str, least_error: float
) -> None:
    report = verified(engine(dtype))
    report.require_passed()
    assert report.dtype == dtype
    assert report.checks[0].value > least_error, "an engine that is this close to the float model isn't quantised"
    assert read_manifest(engine(dtype)).parameters["block_size"] == 32


def test_one_matrix_with_low_and_high_bits_swapped_fails(engine: Callable[[str], Path], tmp_path: Path) -> None:
    report = verified(altered(engine("int4"), tmp_path / "swapped", _swap_bits_of_one_matrix))
    with pytest.raises(CheckFailed):
        report.require_passed()


def _swap_bits_of_one_matrix(folder: Path) -> None:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    product = next(node for node in graph.node if "layers.5.mlp.down_proj" in node.name)
    packed = next(tensor for tensor in graph.initializer if tensor.name == product.input[1])
    offset = int({entry.key: entry.value for entry in packed.external_data}["offset"])
    shape = tuple(packed.dims)
    pairs = np.memmap(folder / "model.onnx.data", dtype=np.uint8, mode="r+", offset=offset, shape=shape)
    pairs[:] = (pairs >> 4) | (pairs << 4)
    pairs.flush()
