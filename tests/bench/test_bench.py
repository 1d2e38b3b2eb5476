from __future__ import annotations

import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlap_export.artifacts import read_manifest, write_manifest
from hlap_export.bench import BenchOptions, BenchReport, bench
from hlap_export.bench.memory import measure_memory
from hlap_export.bench.steps import decode_step, prefill_step
from hlap_export.engines import KVLayer, open_session
from hlap_export.errors import ArtefactError
from tests.tiny_engines import FakeSession, TinyEngines, altered

QUICK = BenchOptions(batches=(1, 2), repeats=6, rounds=2, min_seconds_per_point=0.0, threads=1)


def fake_session() -> FakeSession:
    layers = (KVLayer(index=0, num_kv_heads=2, head_dim=4), KVLayer(index=3, num_kv_heads=1, head_dim=4))
    return FakeSession(lambda ids, positions: np.zeros((*ids.shape, 9)), vocab_size=9, kv_layers=layers)


def test_a_prefill_step_runs_the_whole_prompt_from_nothing_each_time() -> None:
    session = fake_session()
    step = prefill_step(session, 5, seed=0)
    step()
    step()
    assert session.seen == [(1, 5, 0), (1, 5, 0)]


def test_a_decode_step_runs_one_token_after_the_same_context_each_time_and_never_a_prefill() -> None:
    session = fake_session()
    step = decode_step(session, 300, seed=0)
    step()
    step()
    assert session.seen == [(1, 1, 300), (1, 1, 300)]


def test_a_real_engine_attends_to_the_random_context(tiny_engines: TinyEngines) -> None:
    with open_session(tiny_engines.get().folder, threads=1) as session:
        results: list[Any] = [decode_step(session, context, seed=0)() for context in (1, 60)]
    for (logits, cache), context in zip(results, (1, 60), strict=True):
        assert np.isfinite(logits).all()
        assert cache.length == context + 1
    assert not np.array_equal(results[0][0], results[1][0])


def test_rows_of_a_batch_run_together_with_the_same_context() -> None:
    session = fake_session()
    prefill_step(session, 5, batch=3, seed=0)()
    decode_step(session, 300, batch=4, seed=0)()
    assert session.seen == [(3, 5, 0), (4, 1, 300)]


def test_a_bench_of_two_real_engines_fills_every_field_of_its_report(tiny_engines: TinyEngines) -> None:
    candidate, baseline = tiny_engines.get().folder, tiny_engines.get("llama", "dense").folder
    steps: list[tuple[int, int]] = []
    report = bench(
        candidate,
        baseline,
        prompt_lengths=(8, 1000),
        context_lengths=(16,),
        options=QUICK,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    points = [("prefill", 8), ("prefill", 128), ("decode", 16)]
    assert [(row.batch, row.phase, row.num_tokens) for row in report.latency] == [
        (batch, *point) for batch in (1, 2) for point in points
    ]
    assert all((row.num_repeats, row.num_rounds) == (6, 2) for row in report.latency)
    for row in report.latency:
        assert 0 < row.candidate.p50_ms <= row.candidate.p90_ms <= row.candidate.p99_ms
        assert 0 < row.candidate.p50_low_ms <= row.candidate.p50_ms <= row.candidate.p50_high_ms
        assert 0 < row.ratio_low <= row.ratio <= row.ratio_high
        assert row.candidate_limit.min_ms is not None
        assert 0 < row.candidate_limit.min_ms < row.candidate.p50_high_ms
        assert row.limit_ratio < 1
    assert report.speed is not None
    assert report.extrapolated == ()  # one context makes no line
    assert report.noisy == (any(row.noisy for row in report.latency) or report.conditions.disturbed != ())
    assert [length.asked for length in report.adjusted_lengths] == [1000]
    assert (report.threads, report.provider, report.dtype) == (1, "CPUExecutionProvider", "float32")
    assert report.candidate_digest == read_manifest(candidate).digest
    assert report.baseline_digest == read_manifest(baseline).digest
    # Plan "mixed": 2 + 1 KV groups are left of 4 layers of 2, each of head_dim 16, key and value, float32.
    assert report.candidate_memory.kv_bytes_per_token == 3 * 16 * 2 * 4
    assert report.baseline_memory.kv_bytes_per_token == 8 * 16 * 2 * 4
    assert report.candidate_memory.engine_file_bytes < report.baseline_memory.engine_file_bytes
    assert (report.memory_prompt_length, report.memory_batch) == (128, 2)
    assert steps == [(done, 14) for done in range(1, 15)]
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_lengths_are_cut_to_the_smaller_engines_capacity_with_that_reason(
    tiny_engines: TinyEngines, tmp_path: Path
) -> None:
    engine, small = tiny_engines.get().folder, tmp_path / "small"
    shutil.copytree(engine, small)
    manifest = read_manifest(small)
    sizes = manifest.parameters | {"capacity": 40}
    write_manifest(small, kind="engine", parameters=sizes, inputs=manifest.inputs, facts=manifest.facts)
    quick = replace(QUICK, batches=(1,), rounds=1, repeats=5)
    report = bench(engine, small, prompt_lengths=(8, 64), context_lengths=(16, 64), options=quick)
    assert [(row.phase, row.num_tokens) for row in report.latency] == [
        ("prefill", 8),
        ("prefill", 40),
        ("decode", 16),
        ("decode", 39),
    ]
    assert [(length.asked, length.used, length.reason) for length in report.adjusted_lengths] == [
        (64, 40, "an engine was built with room for 40 tokens"),
        (64, 39, "an engine was built with room for 40 tokens, the new one among them"),
    ]


def test_peak_memory_is_the_engines_and_not_this_processs(tiny_engines: TinyEngines) -> None:
    ballast = np.ones(64 * 2**20)  # 512 MiB, touched
    row = measure_memory(tiny_engines.get().folder, prompt_length=8, threads=1)
    assert row.rss_before_load_bytes < row.peak_rss_low_bytes <= row.peak_rss_bytes <= row.peak_rss_high_bytes
    assert row.peak_rss_high_bytes < ballast.nbytes
    assert row.engine_file_bytes == sum(
        path.stat().st_size for path in tiny_engines.get().folder.iterdir() if path.name != "manifest.json"
    )


def test_memory_that_a_prompt_needs_is_seen(tiny_engines: TinyEngines) -> None:
    """Attention scores of 2048 x 2048 in 6 heads are 96 MiB in float32, more than everything else in the process."""
    short, long = (
        measure_memory(tiny_engines.get("llama", "dense").folder, prompt_length=length, threads=1).peak_rss_bytes
        for length in (8, 2048)
    )
    assert long - short > 90 * 2**20


def test_an_engine_that_was_changed_is_not_timed(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    """Its numbers would be told of a digest that it no longer has."""
    engine = tiny_engines.get().folder
    changed = shutil.copytree(engine, tmp_path / "changed")
    (changed / "config.json").write_bytes((changed / "config.json").read_bytes() + b" ")
    for pair in ((changed, engine), (engine, changed)):
        with pytest.raises(ArtefactError, match="found different bytes or files"):
            bench(*pair, prompt_lengths=(8,), context_lengths=(), options=QUICK)


def test_a_process_that_never_ends_is_given_up(tiny_engines: TinyEngines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("hlap_export.bench.memory"), "TIMEOUT_SECONDS", 0.01)
    with pytest.raises(ArtefactError, match="found not done after 0 s"):
        measure_memory(tiny_engines.get().folder, prompt_length=8, threads=1)


def test_an_engine_that_fails_in_its_process_is_reported_with_its_last_words(
    tiny_engines: TinyEngines, tmp_path: Path
) -> None:
    def break_graph(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"not a graph")

    broken = altered(tiny_engines.get().folder, tmp_path / "broken", break_graph)
    with pytest.raises(ArtefactError, match=r"a process of its own, found .*ArtefactError"):
        measure_memory(broken, prompt_length=8, threads=1)
