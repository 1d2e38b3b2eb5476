from __future__ import annotations

from rich.console import Console

from hlap_export.plan.curve import Curve, CurvePoint
from hlap_export.report.curve_table import curve_table


def point(num_removed: int, increase: float, measured: float | None = None) -> CurvePoint:
    return CurvePoint(
        num_removed=num_removed,
        removed=f"attention {9 - num_removed}" if num_removed else "",
        perplexity=20 * (1 + increase),
        increase=increase,
        increase_low=increase - 0.01,
        increase_high=increase + 0.01,
        kv_ratio=1 - num_removed / 8,
        weight_bytes=1000,
        weight_ratio=0.97,
        prefill_ratio=0.93,
        decode_ratio=0.95,
        measured_ratio=measured,
    )


def drawn(*curves: Curve) -> list[str]:
    recorder = Console(width=80)
    with recorder.capture() as captured:
        recorder.print(curve_table(curves))
    return captured.get().splitlines()


def test_the_chosen_point_is_marked_and_harp_stands_beside_it() -> None:
    own = Curve(method="choose-fit", points=(point(0, 0.0), point(1, 0.02), point(2, 0.06)), chosen=1)
    harp = Curve(method="harp", points=(point(0, 0.0), point(1, 0.05)))
    lines = drawn(own, harp)
    marked = [line for line in lines if "→" in line]
    assert len(marked) == 1
    assert "attention 8" in marked[0]
    assert "+2.0%" in marked[0]
    assert "+5.0%" in marked[0]
    assert any(line.rstrip().endswith("harp") for line in lines)
    assert "measured" not in "".join(lines)


def test_measured_latency_has_a_column_where_it_was_measured() -> None:
    own = Curve(method="choose-fit", points=(point(0, 0.0, 1.0), point(1, 0.02, 0.912)))
    assert any("0.912" in line for line in drawn(own))
