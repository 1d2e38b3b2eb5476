"""The tables and the summary, from results made by hand."""

from __future__ import annotations

from benchmarks.ort.limits import Limit
from benchmarks.ort.report import PointResult, Ratio, markdown, summary
from hlap_export.bench.work import Point


def ratio(candidate: str, baseline: str, value: float) -> Ratio:
    return Ratio(candidate=candidate, baseline=baseline, ratio=value, low=value - 0.01, high=value + 0.01)


def result(num_tokens: int, *ratios: Ratio, left_out: dict[str, str] | None = None) -> PointResult:
    return PointResult(
        model="tiny",
        dtype="int4",
        point=Point(phase="decode", num_tokens=num_tokens),
        milliseconds={"dense": 2.0, "pruned": 1.5},
        draws=({"dense": 2.0, "pruned": 1.5},),
        ratios=ratios,
        limit=Limit(flops_ratio=0.9, bytes_ratio=0.7, ratio=0.7),
        left_out=left_out or {},
    )


RESULTS = (
    result(512, ratio("dense", "builder", 0.9), ratio("pruned", "dense", 0.95)),
    result(4096, ratio("dense", "builder", 1.1), ratio("pruned", "dense", 0.72), left_out={"torch": "too large"}),
    result(8192, ratio("dense", "builder", 0.95), ratio("pruned", "dense", 0.69), left_out={"torch": "too large"}),
)


def test_the_summary_has_the_median_and_the_worst_of_each_ratio_that_was_taken() -> None:
    facts = summary(RESULTS)
    assert facts["int4: dense / builder"] == {"median": 0.95, "worst": 1.1, "num_points": 3}
    assert not [name for name in facts if "optimum" in name]


def test_slow_draws_on_either_side_move_no_ratio() -> None:
    slow = ({"dense": 2.6, "builder": 2.0}, {"dense": 2.0, "builder": 2.5})
    even = [{"dense": time, "builder": time} for time in (2.0, 2.1, 2.2)]
    found = Ratio.of("dense", "builder", (*slow, *even))
    assert (found.ratio, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_brackets_are_quartiles() -> None:
    found = Ratio.of("dense", "builder", [{"dense": time, "builder": 1.0} for time in (5.0, 1.0, 4.0, 2.0, 3.0)])
    assert (found.ratio, found.low, found.high) == (3.0, 2.0, 4.0)


def test_only_long_points_are_held_against_their_limit() -> None:
    above = summary(RESULTS)["pruned / dense above its limit, long points"]
    assert above["num_points"] == 2
    assert abs(above["worst"] - 0.02) < 1e-12


def test_the_table_shows_times_quartiles_limits_and_what_was_left_out() -> None:
    facts = {
        "date": "2026-01-02",
        "commit": "abc",
        "flavour": "ort",
        "threads": 2,
        "machine": {"cpu": "a CPU", "memory_bytes": 2**34},
        "versions": {"onnxruntime": "1"},
        "summary": summary(RESULTS),
    }
    text = markdown(facts, RESULTS)
    assert "| step | dense, ms | pruned, ms | torch, ms | dense / builder | pruned / dense | limit |" in text
    assert "| decode 4096 | 2.00 | 1.50 | - | 1.100 (1.090-1.110) | 0.720 (0.710-0.730) | 0.700 |" in text
    assert "Left out: torch at decode 4096, decode 8192: too large." in text
