"""The runner of plans, all of it but the GPU: memory, addresses, profiles and recorded steps."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlap_export.engines import build
from hlap_export.engines.base import Session
from hlap_export.engines.trt import TENSORRT, TENSORRT_RTX, Library, TensorRTOptions, session
from hlap_export.engines.trt.graph import read_graph
from hlap_export.engines.trt.options import resolved, sizes_of
from hlap_export.engines.trt.phases import PHASES, ranges, shape_ranges
from tests.engines.test_ort_flavour import session_logits
from tests.engines.trt.fake_gpu import FakeContext, FakeCuda
from tests.export.exports import TinyExports
from tests.export.test_parity import MASK, NUM_TOKENS, PADDING, RELATIVE_LOGIT_ERROR, relative_error, torch_logits

OPTIONS = TensorRTOptions(capacity=NUM_TOKENS, max_batch=2, max_prompt=9, max_logits=5)
IN_PIECES = (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4))


@pytest.fixture(scope="module")
def built(tiny_exports: TinyExports, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An export in float32, whose numbers the CPU computes exactly, and its real engine."""
    export_dir, out = tiny_exports.get("mistral", "mixed", "float32", "trt").folder, tmp_path_factory.mktemp("runner")
    build(export_dir, out / "engine", engine="tensorrt-rtx", options=OPTIONS)
    return export_dir, out / "engine"


@contextmanager
def on_a_fake_gpu(
    built: tuple[Path, Path], cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, library: Library = TENSORRT_RTX
) -> Iterator[Session]:
    export_dir, engine = built
    sizes = sizes_of(resolved(OPTIONS, max_positions=128))
    graph = read_graph(export_dir / "model.onnx", capacity=sizes.capacity)
    contexts = iter(
        FakeContext(export_dir / "model.onnx", cuda, shape_ranges(graph.inputs, ranges(phase, sizes, decode_tokens=2)))
        for phase in PHASES
    )

    def next_context(*_: Any, records: bool) -> FakeContext:
        return next(contexts)

    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setattr(session, "_load", lambda *_: None)
    monkeypatch.setattr(session, "open_log", lambda _: None)
    monkeypatch.setattr(session, "execution_context", next_context)
    with session.open_plans(library, engine, {"model.engine": PHASES}, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("library", [TENSORRT, TENSORRT_RTX], ids=lambda library: library.name)
def test_the_runner_computes_what_torch_does_in_prefill_pieces_and_steps(
    library: Library, built: tuple[Path, Path], tiny_exports: TinyExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch_logits(tiny_exports.get("mistral", "mixed", "float32", "trt"))
    with on_a_fake_gpu(built, FakeCuda(), monkeypatch, library) as opened:
        for pieces in ((NUM_TOKENS,), IN_PIECES, (1,) * NUM_TOKENS):
            logits = session_logits(opened, pieces, None)
            assert relative_error(logits, expected, MASK.bool().numpy()) <= RELATIVE_LOGIT_ERROR


def test_tensorrts_steps_are_recorded_once_for_each_cache_and_launched_then(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, ids = FakeCuda(), np.random.default_rng(8).integers(0, 90, (2, 1, 6))
    with on_a_fake_gpu(built, cuda, monkeypatch, TENSORRT) as opened:
        alone = [_steps(opened, [row])[0] for row in ids]
        assert cuda.num_launched == 2 * 5  # all steps of a cache but the first
        together = _steps(opened, list(ids))
    np.testing.assert_array_equal(together, alone)  # a recording that took another's buffers would differ


def test_tensorrt_rtx_records_by_itself(built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    with on_a_fake_gpu(built, cuda, monkeypatch, TENSORRT_RTX) as opened:
        _steps(opened, [np.ones((1, 4), np.int64)])
    assert cuda.num_launched == 0


def test_all_memory_is_given_back_when_the_session_and_its_caches_are_gone(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    with on_a_fake_gpu(built, cuda, monkeypatch, TENSORRT) as opened:
        _steps(opened, [np.ones((1, 4), np.int64)])
        assert cuda.allocated
    gc.collect()
    assert not cuda.allocated


def _steps(opened: Session, rows: list[Any]) -> list[Any]:
    """Logits of each row's tokens [1, T] one by one, a cache for each, in turn."""
    caches, found = [opened.empty_cache(1) for _ in rows], [list[Any]() for _ in rows]
    for at in range(rows[0].shape[1]):
        for index, row in enumerate(rows):
            step = row[:, at : at + 1]
            logits, caches[index] = opened.run(step, np.ones((1, at + 1), np.int64), step, caches[index])
            found[index].append(logits)
    return found
