"""Flavour `trt` computes what the checkpoint's torch model computes, within whatever limits an engine was built for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from hlap_export.engines import open_session
from hlap_export.engines.ort_static import OrtRunner
from hlap_export.engines.static_cache import Limits, StaticCacheSession
from hlap_export.errors import ArtefactError
from hlap_export.families import FAMILIES
from tests.engines.test_ort_flavour import session_logits
from tests.export.test_parity import MASK, NUM_TOKENS, PADDING, RELATIVE_LOGIT_ERROR, relative_error, torch_logits
from tests.plans import ATTENTION
from tests.tiny_engines import TinyEngines

IN_PIECES = (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4))
"""The first piece is shorter than the padding: the second row has seen nothing but padding by then."""


@contextmanager
def limited(folder: Path, limits: Limits) -> Iterator[StaticCacheSession]:
    """A session of an engine that takes no more than `limits` in one call, as TensorRT's do."""
    loaded = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    runner = OrtRunner(loaded, provider="CPUExecutionProvider", threads=1)
    runner.limits = limits
    with StaticCacheSession(runner) as session:
        yield session


@pytest.mark.parametrize(
    ("family", "plan"),
    [*((family, "mixed") for family in FAMILIES), *(("gemma2", plan) for plan in ATTENTION if plan != "mixed")],
)
def test_a_padded_batch_matches_torch_at_once_in_pieces_and_step_by_step(
    family: str, plan: str, tiny_engines: TinyEngines
) -> None:
    engine = tiny_engines.get(family, plan, flavour="trt")
    expected, counts = torch_logits(engine), MASK.bool().numpy()
    with open_session(engine.folder, threads=1) as session:
        for pieces in ((NUM_TOKENS,), IN_PIECES, (1,) * NUM_TOKENS):
            logits = session_logits(session, pieces, NUM_TOKENS)
            assert relative_error(logits, expected, counts) <= RELATIVE_LOGIT_ERROR


@pytest.mark.parametrize(
    "limits",
    [
        Limits(batch=2, tokens=5, logits=3, capacity=NUM_TOKENS),
        Limits(batch=1, tokens=7, logits=7, capacity=NUM_TOKENS),
        Limits(batch=4, tokens=NUM_TOKENS, logits=1, capacity=NUM_TOKENS + 3),
    ],
    ids=["few logits", "one row", "one logit"],
)
def test_limits_change_how_often_the_graph_runs_and_not_what_it_computes(
    limits: Limits, tiny_engines: TinyEngines
) -> None:
    engine = tiny_engines.get("mistral", "partial_heads", flavour="trt")
    expected, counts = torch_logits(engine), MASK.bool().numpy()
    with limited(engine.folder, limits) as session:
        for pieces in ((NUM_TOKENS,), IN_PIECES):
            logits = session_logits(session, pieces, None)
            assert relative_error(logits, expected, counts) <= RELATIVE_LOGIT_ERROR


def test_the_last_logits_of_rows_that_end_in_different_pieces_are_the_same_as_of_all(
    tiny_engines: TinyEngines,
) -> None:
    folder = tiny_engines.get("llama", "mixed", flavour="trt").folder
    ids = np.random.default_rng(3).integers(0, 90, (2, 9))
    mask = np.ones_like(ids)
    mask[1, :6] = 0  # three real tokens: they end in the first piece of four
    positions = np.zeros_like(ids)
    with limited(folder, Limits(batch=2, tokens=4, logits=4, capacity=16)) as session:
        every, _ = session.run(ids, mask, positions, session.empty_cache(2))
        last, cache = session.run(ids, mask, positions, session.empty_cache(2), last_only=True)
        np.testing.assert_allclose(last[:, 0], every[:, -1], rtol=1e-5, atol=1e-5)
        assert cache.length == 9


def test_a_row_longer_than_the_capacity_is_refused_with_what_to_do(tiny_engines: TinyEngines) -> None:
    folder = tiny_engines.get("llama", "mixed", flavour="trt").folder
    ids = np.zeros((1, 9), np.int64)
    with (
        limited(folder, Limits(batch=1, tokens=9, logits=9, capacity=8)) as session,
        pytest.raises(ArtefactError, match=r"at most 8 tokens .*found 9.*larger capacity"),
    ):
        session.run(ids, np.ones_like(ids), ids, session.empty_cache(1))


def test_padding_does_not_count_towards_the_capacity(tiny_engines: TinyEngines) -> None:
    folder = tiny_engines.get("llama", "mixed", flavour="trt").folder
    ids, mask = np.ones((2, 10), np.int64), np.ones((2, 10), np.int64)
    mask[:, :4] = 0
    with limited(folder, Limits(batch=2, tokens=16, logits=16, capacity=6)) as session:
        _, cache = session.run(ids, mask, ids, session.empty_cache(2))
        assert [array.shape[2] for array in session.read_cache(cache)] == [10] * 4


def test_a_cache_goes_out_and_in_again_as_arrays(tiny_engines: TinyEngines) -> None:
    folder = tiny_engines.get("llama", "mixed", flavour="trt").folder
    ids = np.random.default_rng(4).integers(0, 90, (2, 8))
    step, ones, positions = ids[:, 7:], np.ones((2, 8), np.int64), np.full((2, 1), 7)
    with limited(folder, Limits(batch=2, tokens=8, logits=8, capacity=None)) as session:
        _, cache = session.run(ids[:, :7], ones[:, :7], ids[:, :7], session.empty_cache(2))
        arrays = session.read_cache(cache)
        expected, _ = session.run(step, ones, positions, cache)
        again, _ = session.run(step, ones, positions, session.load_cache(arrays))
        np.testing.assert_array_equal(again, expected)


def test_a_cache_without_a_capacity_grows_and_keeps_what_it_holds(tiny_engines: TinyEngines) -> None:
    folder = tiny_engines.get("llama", "mixed", flavour="trt").folder
    ids = np.random.default_rng(6).integers(0, 90, (1, 100))
    ones, positions = np.ones_like(ids), np.zeros_like(ids)
    unlimited = Limits(batch=1, tokens=sys.maxsize, logits=sys.maxsize, capacity=None)
    with limited(folder, unlimited) as session:
        whole, _ = session.run(ids, ones, positions, session.empty_cache(1, 100))
        _, cache = session.run(ids[:, :10], ones[:, :10], positions[:, :10], session.empty_cache(1))
        rest, _ = session.run(ids[:, 10:], ones, positions[:, 10:], cache)
        np.testing.assert_allclose(rest, whole[:, 10:], rtol=1e-4, atol=1e-4)
