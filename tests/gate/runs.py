"""Runs as a gate sees them: reports written by hand, or benches of machines that are made up, the truth being known."""

from __future__ import annotations

from typing import Any

import numpy as np

from hlap_export.bench.bench import latency_row
from hlap_export.bench.report import BenchReport, Conditions, LatencyRow, MachineState, MemoryRow, Phase
from hlap_export.bench.roofline import Limits
from hlap_export.bench.work import Point
from hlap_export.evaluate.report import EvaluationReport
from hlap_export.gate.collect import collect
from hlap_export.gate.results import Results
from hlap_export.verify.perplexity import compare_losses
from hlap_export.verify.report import VerifyReport
from tests.bench.rows import latency_row as row_by_hand
from tests.bench.timed import timed_pairs

MACHINE = {"cpu": "Example CPU", "cores": 2, "memory_bytes": 2**34, "system": "Linux x86_64"}
POINTS: tuple[tuple[Phase, int, float, int], ...] = (
    ("prefill", 64, 0.004, 16),
    ("prefill", 256, 0.014, 7),
    ("prefill", 1024, 0.090, 4),
    ("decode", 64, 0.0006, 100),
    ("decode", 512, 0.0010, 80),
    ("decode", 2048, 0.0017, 50),
)
"""Phase, tokens, seconds of the dense engine, pairs in a round: those of the demo."""
CALM = MachineState(
    load_average=0.1,
    clock_mhz=3000.0,
    governor=None,
    temperature_celsius=None,
    memory_free_bytes=2**33,
    gpus=(),
)


def bench_report(rows: tuple[LatencyRow, ...], **changes: Any) -> BenchReport:
    """A report of these rows; sizes are the same in each."""
    memory = MemoryRow(
        peak_rss_bytes=100 * 2**20,
        peak_rss_low_bytes=99 * 2**20,
        peak_rss_high_bytes=101 * 2**20,
        rss_before_load_bytes=60 * 2**20,
        kv_bytes_per_token=2304,
        engine_file_bytes=10 * 2**20,
        weight_bytes=9 * 2**20,
    )
    more = {"peak_rss_bytes": 110, "peak_rss_low_bytes": 109, "peak_rss_high_bytes": 111}
    dense = {name: mebibytes * 2**20 for name, mebibytes in more.items()} | {"kv_bytes_per_token": 3072}
    conditions = Conditions(
        before=CALM, after=CALM, other_cpu_ratio=0.01, stolen_cpu_ratio=0.0, power_watts=None, disturbed=()
    )
    values = {
        "candidate": "engine/pruned",
        "candidate_digest": "c" * 64,
        "baseline": "engine/dense",
        "baseline_digest": "d" * 64,
        "engine": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "dtype": "float32",
        "baseline_dtype": "float32",
        "threads": 2,
        "batches": (1,),
        "latency": rows,
        "extrapolated": (),
        "adjusted_lengths": (),
        "candidate_memory": memory,
        "baseline_memory": memory.model_copy(update=dense),
        "memory_prompt_length": 1024,
        "memory_batch": 1,
        "noisy": False,
        "speed": None,
        "conditions": conditions,
        "seed": 0,
        "seconds": 60.0,
        "machine": MACHINE,
        "versions": {"hlap-export": "0.1.0"},
    }
    return BenchReport.model_validate(values | changes)


def plain_bench(*, slower: float = 1.0, width: float = 0.02, **changes: Any) -> BenchReport:
    """Every point takes 0.8 of the dense engine's time, times `slower`."""
    rows = tuple(
        row_by_hand(phase, tokens, 800 * seconds * slower, 1000 * seconds, width=width)
        for phase, tokens, seconds, _ in POINTS
    )
    return bench_report(rows, **changes)


def simulated_bench(random: np.random.Generator, *, ratio: float = 0.8, **machine: float) -> BenchReport:
    """A bench on a machine that is made up: what its clock would show, through the statistics of a real one."""
    rows: list[LatencyRow] = []
    for phase, tokens, seconds, pairs in POINTS:
        samples = timed_pairs(random, ratio=ratio, baseline_seconds=seconds, pairs=pairs, **machine)
        by_hand = row_by_hand(phase, tokens, 1.0, 1.0)
        limit = Limits(candidate=by_hand.candidate_limit, baseline=by_hand.baseline_limit, ratio=1.0)
        rows.append(latency_row(Point(phase=phase, num_tokens=tokens), samples, limit, seed=0))
    return bench_report(tuple(rows))


def verify_report(losses: np.ndarray[Any, Any], dense: np.ndarray[Any, Any], **changes: Any) -> VerifyReport:
    """A report in which all checks passed, with these losses of windows."""
    values: dict[str, Any] = {
        "candidate": "engine/pruned",
        "candidate_digest": "c" * 64,
        "reference": "checkpoint",
        "reference_digest": "e" * 64,
        "baseline": "engine/dense",
        "baseline_digest": "d" * 64,
        "engine": "onnxruntime",
        "provider": "CPUExecutionProvider",
        "dtype": "float32",
        "threads": 2,
        "tokens": {"kind": "text", "path": "evaluation.txt", "sha256": "f" * 64, "seed": None, "reason": None},
        "prompt_lengths": (24, 13),
        "num_decode_steps": 128,
        "context_length": 512,
        "context_limit": 4096,
        "checks": (
            {
                "name": "prefill logits",
                "value": 2e-7,
                "bound": 1e-4,
                "rule": "at most",
                "passed": True,
                "location": None,
            },
            {
                "name": "greedy agreement",
                "value": 1.0,
                "bound": 0.99,
                "rule": "at least",
                "passed": True,
                "location": None,
            },
        ),
        "agreement": (),
        "greedy": {"agreement": 1.0, "num_tokens": 400, "first_divergence": None, "steps_agreed": 128},
        "fault": None,
        "folds": None,
        "perplexity": compare_losses(losses, dense, window_length=256),
        "passed": True,
        "seconds": 9.0,
        "machine": MACHINE,
        "versions": {"hlap-export": "0.1.0"},
    }
    return VerifyReport.model_validate(values | changes)


def evaluation(value: float | None, standard_error: float | None, **changes: Any) -> EvaluationReport:
    """A report of one task's score; the changes are of that."""
    score = {
        "task": "arc_easy",
        "version": "1.0",
        "metric": "acc",
        "filter": "none",
        "value": value,
        "standard_error": standard_error,
        "higher_is_better": True,
        "num_samples": 2000,
        "num_fewshot": 0,
    }
    values = {
        "engine": "engine/pruned",
        "baseline": "engine/dense",
        "inputs": {"engine": "c" * 64},
        "scores": (score | changes,),
        "settings": {},
        "versions": {},
        "machine": {},
    }
    return EvaluationReport.model_validate(values)


def text_losses(seed: int = 0, *, increase: float = 0.2) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Losses of 32 windows in nats per token, of the candidate and of the dense engine, as the demo's are."""
    random = np.random.default_rng(seed)
    dense = random.normal(2.78, 0.35, 32)
    return dense + random.normal(increase, 0.05, 32), dense


def results(verified: VerifyReport | None = None, timed: BenchReport | None = None) -> Results:
    """What a gate reads from these reports; the plain ones where none are given."""
    if verified is None and timed is None:
        verified, timed = verify_report(*text_losses()), plain_bench()
    return collect(verified, timed)
