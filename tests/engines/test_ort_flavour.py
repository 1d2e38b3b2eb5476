"""Flavour `ort` on ONNX Runtime computes what the checkpoint's torch model computes, with one buffer per cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import numpy as np
import onnx
import pytest

from hlap_export.engines import Session, backends, build, open_session
from hlap_export.engines import ort as ort_engine
from hlap_export.errors import ArtefactError, BackendMissing
from hlap_export.families import FAMILIES
from tests.export.exports import GOLDEN_PLANS, TinyExports
from tests.export.test_parity import (
    FLOAT16_LOGIT_ERROR,
    IDS,
    MASK,
    NUM_TOKENS,
    PADDING,
    POSITIONS,
    RELATIVE_LOGIT_ERROR,
    relative_error,
    torch_logits,
)
from tests.tiny_engines import TinyEngines


def session_logits(session: Session, chunks: tuple[int, ...], capacity: int | None) -> Any:
    """Logits [B, T, V] of feeding the padded tokens chunk by chunk through a cache, which starts empty."""
    ids, mask, positions = (tensor.numpy() for tensor in (IDS, MASK, POSITIONS))
    cache, logits, start = session.empty_cache(len(ids), capacity), [], 0
    for length in chunks:
        end = start + length
        part, cache = session.run(ids[:, start:end], mask[:, :end], positions[:, start:end], cache)
        logits.append(part)
        start = end
    assert start == NUM_TOKENS
    return np.concatenate(logits, axis=1)


@pytest.mark.parametrize(
    ("family", "plan"),
    [
        *((family, plan) for family in FAMILIES for plan in GOLDEN_PLANS),
        *(("llama", "mixed"), ("llama", "holes"), ("gemma2", "mixed")),
    ],
)
def test_a_padded_batch_matches_torch_in_one_prefill_in_chunks_and_step_by_step(
    family: str, plan: str, tiny_engines: TinyEngines, tiny_exports: TinyExports
) -> None:
    exported = tiny_exports.get(family, plan, flavour="ort")
    expected, counts = torch_logits(exported), MASK.bool().numpy()
    with open_session(tiny_engines.get(family, plan, flavour="ort").folder, threads=1) as session:
        # The first chunk is shorter than the padding: the second row has seen nothing but padding by then.
        for chunks in ((NUM_TOKENS,), (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4)), (1,) * NUM_TOKENS):
            logits = session_logits(session, chunks, NUM_TOKENS)
            assert relative_error(logits, expected, counts) <= RELATIVE_LOGIT_ERROR


def test_a_cache_that_grows_gives_what_one_of_the_right_size_gives(tiny_engines: TinyEngines) -> None:
    with open_session(tiny_engines.get("llama", "mixed", flavour="ort").folder, threads=1) as session:
        chunks = (PADDING + 2, *[1] * (NUM_TOKENS - PADDING - 2))
        exact, grown = session_logits(session, chunks, NUM_TOKENS), session_logits(session, chunks, 3)
    np.testing.assert_array_equal(grown, exact)


@pytest.mark.parametrize("keeps", ["all of them", "a part of each", "the last two", "none"])
def test_logits_that_the_caller_still_holds_are_not_written_over(keeps: str, tiny_engines: TinyEngines) -> None:
    ids, positions = IDS.numpy()[:1], POSITIONS.numpy()[:1]
    mask = np.ones_like(ids)
    with open_session(tiny_engines.get("llama", "suffix", flavour="ort").folder, threads=1) as session:
        whole, _ = session.run(ids, mask, np.arange(NUM_TOKENS)[None], session.empty_cache(1))
        cache, held = session.empty_cache(1, capacity=NUM_TOKENS), dict[int, Any]()
        for at in range(NUM_TOKENS):
            logits, cache = session.run(ids[:, at : at + 1], mask[:, : at + 1], positions[:, at : at + 1], cache)
            assert relative_error(logits, whole[:, at : at + 1], np.ones((1, 1), bool)) <= RELATIVE_LOGIT_ERROR
            held[at] = logits[0, 0, 3:] if keeps == "a part of each" else logits[0, 0]
            if keeps in ("the last two", "none"):
                held.pop(at - (2 if keeps == "the last two" else 0), None)
            del logits
    for at, kept in held.items():
        expected = whole[0, at, -len(kept) :]
        assert np.abs(kept - expected).max() <= RELATIVE_LOGIT_ERROR * np.abs(expected).max()


def test_the_cache_reads_as_the_portable_engines_does_where_tokens_are(tiny_engines: TinyEngines) -> None:
    ids, mask, positions = (tensor.numpy() for tensor in (IDS, MASK, POSITIONS))
    caches = []
    for flavour in ("ort", "portable"):
        with open_session(tiny_engines.get("llama", "mixed", flavour=flavour).folder, threads=1) as session:
            _, cache = session.run(ids, mask, positions, session.empty_cache(2))
            caches.append([array * mask[:, None, :, None] for array in session.read_cache(cache)])
    for ours, portable in zip(*caches, strict=True):
        assert ours.shape == portable.shape
        assert np.abs(ours - portable).max() <= 1e-5 * np.abs(portable).max()


def test_the_last_logits_of_rows_of_different_lengths_are_the_last_of_all(tiny_engines: TinyEngines) -> None:
    ids, mask, positions = (tensor.numpy() for tensor in (IDS, MASK, POSITIONS))
    with open_session(tiny_engines.get("gemma2", "suffix", flavour="ort").folder, threads=1) as session:
        whole, _ = session.run(ids, mask, positions, session.empty_cache(2))
        last, _ = session.run(ids, mask, positions, session.empty_cache(2), last_only=True)
    assert last.shape == (2, 1, whole.shape[2])
    assert np.abs(last - whole[:, -1:]).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize("last_only", [False, True])
def test_a_prompt_that_runs_in_chunks_gives_what_it_gives_at_once(
    last_only: bool, tiny_engines: TinyEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, mask, positions = (tensor.numpy() for tensor in (IDS, MASK, POSITIONS))
    folder = tiny_engines.get("gemma2", "suffix", flavour="ort").folder
    with open_session(folder, threads=1) as session:
        at_once, _ = session.run(ids, mask, positions, session.empty_cache(2), last_only=last_only)
    monkeypatch.setattr("hlap_export.engines.ort_in_place.CPU_CHUNK", 6)  # of 20 and 14 tokens
    with open_session(folder, threads=1) as session:
        runs = mock.Mock(wraps=cast(Any, session)._run)
        monkeypatch.setattr(session, "_run", runs)
        in_chunks, _ = session.run(ids, mask, positions, session.empty_cache(2), last_only=last_only)
    assert [call.args[2].shape[1] for call in runs.call_args_list] == [6, 6, 6, 2, 6, 6, 2]
    counted = MASK.bool().numpy()[:, -1:] if last_only else MASK.bool().numpy()
    assert np.abs(in_chunks - at_once)[counted].max() <= 1e-5 * np.abs(at_once).max()


def test_more_tokens_than_the_model_has_positions_for_are_refused(tiny_engines: TinyEngines) -> None:
    ids = np.ones((1, 129), np.int64)  # tiny models have 128 positions
    with open_session(tiny_engines.get("llama", "mixed", flavour="ort").folder, threads=1) as session:
        session.run(ids[:, :128], ids[:, :128], np.arange(128)[None], session.empty_cache(1))
        with pytest.raises(ArtefactError, match="a sequence of 129"):
            session.run(ids, ids, np.arange(129)[None], session.empty_cache(1))


def test_a_graph_that_counts_the_columns_of_the_mask_is_refused(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    """As those of earlier versions did: of the one column that a session passes, they would see one token."""
    shutil.copytree(tiny_engines.get("llama", "mixed", flavour="ort").folder, tmp_path / "engine")
    graph = tmp_path / "engine" / "model.onnx"
    model = onnx.load(graph, load_external_data=False)
    mask = next(value for value in model.graph.input if value.name == "attention_mask")
    mask.type.tensor_type.shape.dim[1].dim_param = "past_sequence + sequence"
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(ArtefactError, match=r"\[batch, past_sequence \+ sequence\].*export and build it again"):
        open_session(tmp_path / "engine", threads=1)


def test_steps_write_into_the_buffers_that_were_allocated_once(tiny_engines: TinyEngines) -> None:
    ids, mask, positions = (tensor.numpy() for tensor in (IDS, MASK, POSITIONS))
    with open_session(tiny_engines.get("llama", "mixed", flavour="ort").folder, threads=1) as session:
        cache = session.empty_cache(2, NUM_TOKENS)
        store: Any = cache.buffers[0]
        before = [(buffer.pointer, buffer.read().nbytes) for buffer in store.buffers]
        for at in range(NUM_TOKENS):
            step = (ids[:, at : at + 1], mask[:, : at + 1], positions[:, at : at + 1])
            _, cache = session.run(*step, cache)
        assert [(buffer.pointer, buffer.read().nbytes) for buffer in store.buffers] == before
        # Live layers alone: 0 with 2 KV heads, 2 with 1; 16 elements of 4 bytes, keys and values, two rows.
        assert sum(size for _, size in before) == 2 * NUM_TOKENS * (2 + 1) * 2 * 16 * 4


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_engine_matches_torch_and_every_attention_of_it_runs_on_the_gpu(
    family: str, dtype: str, tiny_exports: TinyExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if problem := backends()["onnxruntime-cuda"].why_unavailable():
        pytest.skip(problem.found)
    exported = tiny_exports.get(family, "mixed", dtype, "ort")
    build(exported.folder, tmp_path / "engine", engine="onnxruntime-cuda")
    profile_sessions(monkeypatch, tmp_path / "profile")
    chunks = (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4))
    with open_session(tmp_path / "engine", threads=1) as session:
        assert session.provider == "CUDAExecutionProvider"
        logits = session_logits(session, chunks, NUM_TOKENS)
        places = attention_providers(cast(Any, session)._session.end_profiling())
    assert len(places) >= 2 * len(chunks), "two layers with attention in every chunk"
    assert set(places) == {"CUDAExecutionProvider"}
    # bfloat16 keeps 3 bits less than float16.
    bound = FLOAT16_LOGIT_ERROR * (8 if dtype == "bfloat16" else 1)
    assert relative_error(logits, torch_logits(exported), MASK.bool().numpy()) <= bound


def profile_sessions(monkeypatch: pytest.MonkeyPatch, prefix: Path) -> None:
    """From now on, sessions write down what runs where."""
    options = ort_engine.session_options

    def profiling(*, threads: int) -> Any:
        made = options(threads=threads)
        made.enable_profiling = True
        made.profile_file_prefix = str(prefix)
        return made

    monkeypatch.setattr(ort_engine, "session_options", profiling)


def attention_providers(profile: str) -> list[str]:
    """Where each attention that a profile names was computed, in order."""
    arguments = [event.get("args", {}) for event in json.loads(Path(profile).read_text())]
    return [each["provider"] for each in arguments if each.get("op_name") == "GroupQueryAttention"]


@pytest.mark.parametrize(
    ("flavour", "dtype", "found"),
    [
        ("ort", "float32", "found float32"),
        ("ort", "int4", "found float32, beside weights in int4"),
        ("portable", "float16", "found flavour portable"),
        ("trt", "float16", "found flavour trt"),
    ],
)
def test_what_would_compute_or_wait_on_the_cpu_is_refused_for_a_gpu(
    flavour: str, dtype: str, found: str, tiny_exports: TinyExports, tmp_path: Path
) -> None:
    exported = tiny_exports.get("llama", "mixed", dtype, flavour)
    with pytest.raises(ArtefactError, match=f"{found}.*--dtype float16"):
        backends()["onnxruntime-cuda"].compile(exported.folder, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gpu_engine_is_the_graph_as_it_was_exported(dtype: str, tiny_exports: TinyExports, tmp_path: Path) -> None:
    exported = tiny_exports.get("llama", "mixed", dtype, "ort")
    backends()["onnxruntime-cuda"].compile(exported.folder, tmp_path)
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / name).read_bytes() == (exported.folder / name).read_bytes()


def test_a_session_on_another_provider_than_the_one_asked_for_is_refused(
    tiny_engines: TinyEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_engines.get("llama", "mixed", flavour="ort").folder  # first: building it needs real sessions
    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: fallen_back)
    with pytest.raises(BackendMissing, match="a session on CUDAExecutionProvider, found one on CPUExecutionProvider"):
        backends()["onnxruntime-cuda"].open(folder, threads=1)


def test_float16_on_the_cpu_stays_close_to_float32_torch(tiny_engines: TinyEngines, tiny_exports: TinyExports) -> None:
    with open_session(tiny_engines.get("gemma2", "mixed", "float16", "ort").folder, threads=1) as session:
        logits = session_logits(session, (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4)), NUM_TOKENS)
    expected = torch_logits(tiny_exports.get("gemma2", "mixed", "float16", "ort"))
    assert relative_error(logits, expected, MASK.bool().numpy()) <= FLOAT16_LOGIT_ERROR
