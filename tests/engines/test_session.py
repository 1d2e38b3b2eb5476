from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hlap_export.engines import Session, open_session
from hlap_export.families import FAMILIES
from tests.tiny import VOCAB_SIZE
from tests.tiny_engines import TinyEngine, TinyEngines

RELATIVE = 2e-6  # float32 sums in another order


def tokens(batch: int, length: int) -> Any:
    return np.random.default_rng(5).integers(0, VOCAB_SIZE, (batch, length))


def run_whole(session: Session, ids: Any) -> tuple[Any, Any]:
    batch, length = ids.shape
    positions = np.tile(np.arange(length), (batch, 1))
    return session.run(ids, np.ones_like(ids), positions, session.empty_cache(batch))


def assert_close(found: Any, expected: Any) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()


def plain_run(engine: TinyEngine, feeds: dict[str, Any]) -> dict[str, Any]:
    """ONNX Runtime's own run() on the engine's file: numpy in, numpy out, default options."""
    session = onnxruntime.InferenceSession(engine.folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def test_a_session_knows_its_cache_layout_from_the_graph(tiny_engines: TinyEngines) -> None:
    with open_session(tiny_engines.get("llama", "partial_heads").folder, threads=1) as session:
        assert [(layer.index, layer.num_kv_heads, layer.head_dim) for layer in session.kv_layers] == [
            (0, 2, 16),
            (1, 1, 16),
            (2, 2, 16),
            (3, 1, 16),
        ]
        assert (session.vocab_size, session.dtype, session.threads) == (VOCAB_SIZE, "float32", 1)
        assert session.provider == "CPUExecutionProvider"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_decode_through_the_cache_equals_prefill(tiny_engines: TinyEngines, family: str) -> None:
    ids = tokens(2, 12)
    with open_session(tiny_engines.get(family).folder, threads=1) as session:
        whole, _ = run_whole(session, ids)
        cache, steps = session.empty_cache(2), []
        for at in range(12):
            logits, cache = session.run(ids[:, at : at + 1], np.ones((2, at + 1), np.int64), np.full((2, 1), at), cache)
            steps.append(logits)
            assert (cache.batch, cache.length) == (2, at + 1)
    assert_close(np.concatenate(steps, axis=1), whole)


def test_bound_buffers_give_what_a_plain_run_gives(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get()
    ids = tokens(2, 9)
    with open_session(engine.folder, threads=1) as session:
        _, past = run_whole(session, ids[:, :6])
        arrays = session.read_cache(past)
        mask, positions = np.ones((2, 9), np.int64), np.tile(np.arange(6, 9), (2, 1))
        logits, present = session.run(ids[:, 6:], mask, positions, past)
        names = [f"{layer.index}.{part}" for layer in session.kv_layers for part in ("key", "value")]
        caches = {f"past_key_values.{name}": array for name, array in zip(names, arrays, strict=True)}
        tokens_in = {"input_ids": ids[:, 6:], "attention_mask": mask, "position_ids": positions}
        expected = plain_run(engine, tokens_in | caches)
        assert_close(logits, expected["logits"])
        for name, array in zip(names, session.read_cache(present), strict=True):
            assert_close(array, expected[f"present.{name}"])


def test_a_cache_survives_reading_and_loading(tiny_engines: TinyEngines) -> None:
    ids = tokens(1, 8)
    with open_session(tiny_engines.get().folder, threads=1) as session:
        _, past = run_whole(session, ids[:, :7])
        reloaded = session.load_cache(session.read_cache(past))
        step = (ids[:, 7:], np.ones((1, 8), np.int64), np.array([[7]]))
        direct, _ = session.run(*step, past)
        through_numpy, _ = session.run(*step, reloaded)
        another, _ = session.run(*step, session.load_cache([array + 1 for array in session.read_cache(past)]))
    np.testing.assert_array_equal(direct, through_numpy)
    assert np.abs(another - direct).max() > 1e-3


def test_the_last_logits_alone_are_the_last_of_all(tiny_engines: TinyEngines) -> None:
    ids = tokens(2, 8)
    with open_session(tiny_engines.get().folder, threads=1) as session:
        whole, _ = run_whole(session, ids)
        mask, positions = np.ones_like(ids), np.tile(np.arange(8), (2, 1))
        last, cache = session.run(ids, mask, positions, session.empty_cache(2, capacity=8), last_only=True)
        step = (ids[:, :1], np.ones((2, 9), np.int64), np.full((2, 1), 8))
        after_last, _ = session.run(*step, cache)
        _, whole_cache = run_whole(session, ids)
        after_whole, _ = session.run(*step, whole_cache)
    assert_close(last, whole[:, -1:])
    assert_close(after_last, after_whole)


def test_results_outlive_the_session_and_its_buffers(tiny_engines: TinyEngines) -> None:
    ids = tokens(1, 8)
    with open_session(tiny_engines.get().folder, threads=1) as session:
        logits, cache = run_whole(session, ids)
        kept, cached = logits.copy(), session.read_cache(cache)
        for _ in range(5):
            run_whole(session, tokens(1, 8)[:, ::-1])
    del session, cache
    gc.collect()
    np.testing.assert_array_equal(logits, kept)
    assert all(np.isfinite(array).all() for array in cached)


def test_two_threads_compute_what_one_computes(tiny_engines: TinyEngines) -> None:
    folder = tiny_engines.get().folder
    with open_session(folder, threads=1) as one, open_session(folder, threads=2) as two:
        assert two.threads == 2
        assert_close(run_whole(two, tokens(2, 16))[0], run_whole(one, tokens(2, 16))[0])


def test_threads_sleep_as_soon_as_a_run_ends(tiny_engines: TinyEngines) -> None:
    """By default ONNX Runtime's threads stay awake for 40 ms, on cores that something else may want."""
    with open_session(tiny_engines.get().folder, threads=2) as session:
        for _ in range(3):
            run_whole(session, tokens(2, 16))
        computed = time.process_time()
        time.sleep(0.1)
        assert time.process_time() - computed < 0.02


def test_a_half_precision_engine_takes_and_gives_float32_at_its_border(tiny_engines: TinyEngines) -> None:
    ids = tokens(1, 8)
    with (
        open_session(tiny_engines.get("llama", "dense", "float16").folder, threads=1) as half,
        open_session(tiny_engines.get("llama", "dense").folder, threads=1) as full,
    ):
        assert half.dtype == "float16"
        logits, cache = run_whole(half, ids)
        expected, _ = run_whole(full, ids)
        assert logits.dtype == np.float32
        assert {array.dtype for array in half.read_cache(cache)} == {np.dtype(np.float32)}
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert 1e-6 < error < 1e-2, "close, but not computed in float32"
