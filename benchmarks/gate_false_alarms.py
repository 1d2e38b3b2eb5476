"""How often does a gate flag an engine that hasn't changed, and does it catch one that is 10 % slower?

    python -m benchmarks.gate_false_alarms --out benchmarks/results

The reference model's engines, pruned and dense, are benched again and again, and each bench is gated against the one
before by the rules of examples/gate: A/A, so whatever fails is a false alarm. So is the dense engine against itself,
which is at the very bound of the rule "no slower than dense". Then every step of the pruned engine is held up for a
tenth of its own time, and those benches are gated against the A/A ones. Nothing is simulated: it is this machine with
whatever else runs on it, and the report says what that was. About ten seconds for each bench.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.provenance import provenance
from hlap_export import reference_model
from hlap_export.artifacts import write_text_whole
from hlap_export.bench import BenchOptions, BenchReport, bench
from hlap_export.bench.steps import step_of
from hlap_export.bench.work import Point
from hlap_export.checkpoint import read_layout
from hlap_export.engines import Session, build
from hlap_export.export import export
from hlap_export.gate.collect import collect
from hlap_export.gate.decide import decide
from hlap_export.gate.results import Results
from hlap_export.gate.rules import Rules, load_rules
from hlap_export.plan import plan
from hlap_export.prune import prune

RULES = Path(__file__).parents[1] / "examples/gate/gate.yaml"
ALPHAS = {9: 0.2, 10: 0.3, 11: 0.6}  # those of the demo
SLOWDOWN = 0.10


@dataclass(frozen=True, kw_only=True, slots=True)
class Engines:
    """Both engines of the reference model."""

    pruned: Path
    dense: Path


def make_engines(work: Path) -> Engines:
    """Prune, export and build the reference model."""
    checkpoint = work / "checkpoint"
    dense = reference_model.path()
    prune(dense, plan(dense, method="fixed", alphas=ALPHAS), checkpoint)
    for name, source in (("dense", dense), ("pruned", checkpoint)):
        export(source, work / f"{name}-onnx", flavour="ort")
        build(work / f"{name}-onnx", work / name)
    return Engines(pruned=work / "pruned", dense=work / "dense")


def measure(engines: Engines, options: BenchOptions) -> BenchReport:
    """One bench of four points."""
    return _bench(engines.pruned, engines, options)


def measure_equal(engines: Engines, options: BenchOptions) -> BenchReport:
    """The dense engine against itself: the true ratio is 1."""
    return _bench(engines.dense, engines, options)


def _bench(candidate: Path, engines: Engines, options: BenchOptions) -> BenchReport:
    return bench(candidate, engines.dense, prompt_lengths=(64, 256), context_lengths=(64, 1024), options=options)


def measure_slower(engines: Engines, options: BenchOptions) -> BenchReport:
    """The same with every step of the pruned engine held up."""
    num_cached = len(read_layout(engines.pruned).cached_layers)

    def held_up(session: Session, point: Point, *, seed: int) -> Callable[[], object]:
        step = step_of(session, point, seed=seed)
        if len(session.kv_layers) != num_cached:
            return step

        def run() -> None:
            began = time.perf_counter()
            step()
            until = time.perf_counter() + SLOWDOWN * (time.perf_counter() - began)
            while time.perf_counter() < until:
                pass

        return run

    with mock.patch("hlap_export.bench.bench.step_of", held_up):
        return measure(engines, options)


def failures(rules: Rules, candidate: Results, accepted: Results) -> list[str]:
    """What fails of what a bench measures; rules on verify's numbers have nothing to hold here."""
    return [
        f"{verdict.metric}: {verdict.rule}"
        for verdict in decide(rules, candidate, accepted)
        if verdict.outcome == "failed" and verdict.source is not None
    ]


def summarise(
    rules: Rules, same: Sequence[BenchReport], equal: Sequence[BenchReport], slower: Sequence[BenchReport]
) -> dict[str, Any]:
    """Rates of false alarms and of catches, the numbers that they are from, and how calm the machine was."""
    runs, equals, held_up = ([collect(None, report) for report in reports] for reports in (same, equal, slower))
    alarms = [failures(rules, after, before) for before, after in pairwise(runs)]
    equal_alarms = [failures(rules, after, before) for before, after in pairwise(equals)]
    catches = [failures(rules, after, before) for before, after in zip(runs, held_up, strict=False)]
    return {
        "num_same_pairs": len(alarms),
        "num_false_alarms": sum(bool(found) for found in alarms),
        "false_alarms": [found for found in alarms if found],
        "num_equal_pairs": len(equal_alarms),
        "num_equal_false_alarms": sum(bool(found) for found in equal_alarms),
        "equal_false_alarms": [found for found in equal_alarms if found],
        "num_slower_pairs": len(catches),
        "num_caught": sum(bool(found) for found in catches),
        "ratios": [
            {"phase": row.phase, "num_tokens": row.num_tokens, "ratios": _ratios(same, index)}
            for index, row in enumerate(same[0].latency)
        ],
        "ratios_slower": [_ratios(slower, index) for index in range(len(same[0].latency))],
        "num_disturbed": sum(bool(report.conditions.disturbed) for report in (*same, *equal, *slower)),
        "other_cpu_ratio": [report.conditions.other_cpu_ratio for report in (*same, *equal, *slower)],
        "stolen_cpu_ratio": [report.conditions.stolen_cpu_ratio for report in (*same, *equal, *slower)],
    }


def _ratios(reports: Sequence[BenchReport], index: int) -> list[list[float]]:
    """Ratio and its interval in each bench."""
    rows = [report.latency[index] for report in reports]
    return [[round(value, 4) for value in (row.ratio, row.ratio_low, row.ratio_high)] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--same", type=int, default=41, help="benches of unchanged engines")
    parser.add_argument("--equal", type=int, default=41, help="benches of the dense engine against itself")
    parser.add_argument("--slower", type=int, default=20, help="benches of a slower engine")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each of four points")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    options = BenchOptions(min_seconds_per_point=arguments.seconds, threads=arguments.threads)
    found = provenance("gate_false_alarms")
    same: list[BenchReport] = []
    equal: list[BenchReport] = []
    slower: list[BenchReport] = []
    most = max(arguments.same, arguments.equal, arguments.slower)
    with tempfile.TemporaryDirectory() as work:
        engines = make_engines(Path(work))
        for number in range(most):
            # In turn, so that all kinds meet the same machine.
            if number < arguments.same:
                same.append(measure(engines, options))
            if number < arguments.equal:
                equal.append(measure_equal(engines, options))
            if number < arguments.slower:
                slower.append(measure_slower(engines, options))
            print(f"{number + 1} of {most}", file=sys.stderr, flush=True)
    facts = found | {
        "rules": RULES.name,
        "slowdown": SLOWDOWN,
        "seconds_per_point": arguments.seconds,
        "threads": same[0].threads,
        **summarise(load_rules(RULES), same, equal, slower),
    }
    path = arguments.out / f"{facts['date']}_gate_false_alarms.json"
    write_text_whole(path, json.dumps(facts, indent=1) + "\n")
    print(
        f"{facts['num_false_alarms']} false alarms in {facts['num_same_pairs']} pairs of unchanged engines; "
        f"{facts['num_equal_false_alarms']} in {facts['num_equal_pairs']} of the dense engine against itself; "
        f"{facts['num_caught']} of {facts['num_slower_pairs']} slower ones caught; {facts['num_disturbed']} benches "
        f"disturbed. {path}"
    )


if __name__ == "__main__":
    main()
