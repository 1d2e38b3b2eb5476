"""The runner of plans, all of it but the GPU: memory, addresses, profiles and recorded steps."""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlap_export.artifacts import is_intact, read_manifest, write_manifest
from hlap_export.engines import build
from hlap_export.engines.base import Session
from hlap_export.engines.trt import TENSORRT, TENSORRT_RTX, Library, TensorRTOptions, rtx, session
from hlap_export.engines.trt import library as libraries
from hlap_export.engines.trt.gpu import Stream
from hlap_export.engines.trt.graph import read_graph
from hlap_export.engines.trt.library import Log
from hlap_export.engines.trt.options import resolved, sizes_of
from hlap_export.engines.trt.phases import PHASES, ranges, shape_ranges
from hlap_export.errors import ArtefactError
from hlap_export.machine import NvidiaGpu
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
    built: tuple[Path, Path],
    cuda: FakeCuda,
    monkeypatch: pytest.MonkeyPatch,
    library: Library = TENSORRT_RTX,
    capacity: int = NUM_TOKENS,
) -> Iterator[Session]:
    put_on_the_fake_gpu(built[0], cuda, monkeypatch, capacity)
    with session.open_plans(library, built[1], {"model.engine": PHASES}, threads=1) as opened:
        yield opened


def put_on_the_fake_gpu(
    export_dir: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, capacity: int = NUM_TOKENS
) -> None:
    """Let the next session run an export in place of its engine's plan."""
    log = Log(logger=None)  # type: ignore[arg-type]
    sizes = sizes_of(resolved(replace(OPTIONS, capacity=capacity), max_positions=128))
    path = export_dir / "model.onnx"
    inputs = read_graph(path, capacity=sizes.capacity).inputs
    shapes = (shape_ranges(inputs, ranges(phase, sizes, decode_tokens=2)) for phase in PHASES)
    contexts = (FakeContext(path, cuda, ranges_of_phase, log.problems) for ranges_of_phase in shapes)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setattr(session, "_load", lambda *_: None)
    monkeypatch.setattr(session, "open_log", lambda _: log)
    monkeypatch.setattr(session, "execution_context", lambda *_, records: next(contexts))


@pytest.mark.parametrize("library", [TENSORRT, TENSORRT_RTX], ids=lambda library: library.name)
def test_the_runner_computes_what_torch_does_in_prefill_pieces_and_steps(
    library: Library, built: tuple[Path, Path], tiny_exports: TinyExports, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = torch_logits(tiny_exports.get("mistral", "mixed", "float32", "trt"))
    with on_a_fake_gpu(built, FakeCuda(), monkeypatch, library) as opened:
        for pieces in ((NUM_TOKENS,), IN_PIECES, (1,) * NUM_TOKENS):
            logits = session_logits(opened, pieces, None)
            assert relative_error(logits, expected, MASK.bool().numpy()) <= RELATIVE_LOGIT_ERROR


@pytest.mark.parametrize("batches", [(1, 1), (1, 2), (2, 3)], ids=str)
def test_tensorrts_steps_are_recorded_once_for_each_cache_and_launched_then(
    batches: tuple[int, int], built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn, two caches share a context: a recording that outlived its cache's turn would be of the other's."""
    cuda, generator = FakeCuda(), np.random.default_rng(8)
    rows = [generator.integers(0, 90, (batch, 6)) for batch in batches]
    with on_a_fake_gpu(built, cuda, monkeypatch, TENSORRT) as opened:
        alone = [_steps(opened, [row])[0] for row in rows]
        whole = [batch for batch in batches if batch <= OPTIONS.max_batch]  # more rows run one after another
        assert cuda.num_launched == len(whole) * 5  # all steps of a cache but the first
        together = _steps(opened, rows)
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert cuda.num_executables == 0


def test_rows_that_begin_where_no_tensor_may_are_run_apart(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 21 slots of 16 float32 numbers, the second row begins at 1344 bytes, which 256 doesn't divide."""
    capacity, odd = NUM_TOKENS + 1, tmp_path / "odd"
    shutil.copytree(built[1], odd)
    known = read_manifest(odd)
    sizes = known.parameters | {"capacity": capacity}
    write_manifest(odd, kind="engine", parameters=sizes, inputs=known.inputs, facts=known.facts)
    rows = np.random.default_rng(5).integers(0, 90, (3, 9))
    with on_a_fake_gpu(built, FakeCuda(), monkeypatch, TENSORRT) as opened:
        expected = _prompt_and_steps(opened, rows)
    cuda = FakeCuda()
    with on_a_fake_gpu((built[0], odd), cuda, monkeypatch, TENSORRT, capacity) as opened:
        found = _prompt_and_steps(opened, rows)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    gc.collect()
    assert not cuda.allocated


def _prompt_and_steps(opened: Session, rows: Any) -> Any:
    """Logits of five tokens at once and the others one by one, more rows than the engine takes."""
    cache, found = opened.empty_cache(len(rows)), list[Any]()
    for start, stop in ((0, 5), (5, 6), (6, 7), (7, 8), (8, 9)):
        mask = np.ones((len(rows), stop), np.int64)
        logits, cache = opened.run(rows[:, start:stop], mask, rows[:, start:stop], cache)
        found.append(logits)
    return np.concatenate(found, axis=1)


def show_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the driver name a GPU that both libraries can use."""
    gpu = NvidiaGpu(name="NVIDIA Fake", compute_capability="SM89")
    monkeypatch.setattr(libraries, "count_nvidia_gpus", lambda: (1, "1 NVIDIA GPU"))
    monkeypatch.setattr(rtx, "first_nvidia_gpu", lambda: gpu)


def test_where_there_is_a_gpu_a_build_opens_what_it_built_before_the_folder_appears(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is the real one; what it built is loaded by the fake."""
    cuda = FakeCuda()
    show_a_gpu(monkeypatch)
    put_on_the_fake_gpu(built[0], cuda, monkeypatch)
    manifest = build(built[0], tmp_path / "engine", engine="tensorrt-rtx", options=OPTIONS)
    assert cuda.profiles == [0, 1]
    assert is_intact(tmp_path / "engine", manifest)
    assert read_manifest(tmp_path / "engine") == manifest
    assert manifest.facts["kv_layers"] == read_manifest(built[1]).facts["kv_layers"]


def test_a_new_engine_that_cannot_be_opened_leaves_nothing_behind(
    built: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    show_a_gpu(monkeypatch)
    put_on_the_fake_gpu(built[0], cuda, monkeypatch)
    cuda.num_profiles = 1
    with pytest.raises(ArtefactError, match=r"a context of profile 1.*found no profile 1"):
        build(built[0], tmp_path / "engine", engine="tensorrt-rtx", options=OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_call_that_the_library_refuses_is_told_with_what_its_log_says(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_a_fake_gpu(built, FakeCuda(), monkeypatch) as opened:
        runner = opened._runner  # type: ignore[attr-defined]
        too_many, one = np.zeros((1, 10), np.int64), np.zeros((1, 1), np.int64)
        with pytest.raises(ArtefactError, match=r"takes input_ids of shape \(1, 10\), found input_ids .* isn't within"):
            runner.run(runner.make_buffers(1, NUM_TOKENS), None, too_many, one[0], one)


def test_a_cache_that_the_gpu_has_no_room_for_is_told_and_leaves_nothing_behind(
    built: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda()
    with on_a_fake_gpu(built, cuda, monkeypatch) as opened:
        before = len(cuda.allocated)
        cuda.room = 2 * NUM_TOKENS * 16 * 4  # float32 keys of one KV head for two rows, and nothing more
        with pytest.raises(ArtefactError, match=r"in cudaMalloc: expected no error, found out of memory"):
            opened.empty_cache(2)
        gc.collect()
        assert len(cuda.allocated) == before


def test_what_fails_while_it_is_recorded_ends_the_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    stream = Stream()

    def fail() -> None:
        raise ArtefactError(where="a step", expected="a step that runs", found="none", fix="-")

    with pytest.raises(ArtefactError, match="a step"):
        stream.record(fail)
    stream.wait()


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
    """Logits of each array's tokens [B, T] one by one, a cache for each array, in turn."""
    caches, found = [opened.empty_cache(len(row)) for row in rows], [list[Any]() for _ in rows]
    for at in range(rows[0].shape[1]):
        for index, row in enumerate(rows):
            step = row[:, at : at + 1]
            logits, caches[index] = opened.run(step, np.ones((len(row), at + 1), np.int64), step, caches[index])
            found[index].append(logits)
    return found
