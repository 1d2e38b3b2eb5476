from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from hlap_export.bench.report import MachineSpeed, ReadSpeed
from hlap_export.bench.roofline import EngineShape, limits, machine_speed
from hlap_export.bench.work import Point, step_work
from hlap_export.checkpoint import ModelLayout, read_layout
from tests.tiny import save_tiny

DECODE = Point(phase="decode", num_tokens=64)
PREFILL = Point(phase="prefill", num_tokens=64)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> ModelLayout:
    return read_layout(save_tiny(tmp_path_factory.mktemp("tiny"), "llama"))


def speed(flops: float, *reads: tuple[int, float]) -> MachineSpeed:
    return MachineSpeed(
        flops_per_second=flops,
        reads=tuple(ReadSpeed(buffer_bytes=size, bytes_per_second=fast) for size, fast in reads),
    )


def test_a_step_takes_as_long_as_the_slower_of_arithmetic_and_memory(layout: ModelLayout) -> None:
    shape = EngineShape(layout=layout, dtype="float32")
    work = step_work(layout, DECODE, dtype="float32")
    reading = limits(shape, shape, DECODE, speed(1e12, (1, 1e6))).candidate
    assert (reading.bound_by, reading.min_ms) == ("memory", pytest.approx(work.bytes / 1e6 * 1e3))
    computing = limits(shape, shape, DECODE, speed(1e3, (1, 1e9))).candidate
    assert (computing.bound_by, computing.min_ms) == ("arithmetic", pytest.approx(work.flops / 1e3 * 1e3))
    assert (computing.flops, computing.bytes) == (work.flops, work.bytes)


def test_the_speed_of_reading_is_that_of_buffers_as_large_as_what_is_read(layout: ModelLayout) -> None:
    shape = EngineShape(layout=layout, dtype="float32")
    size = step_work(layout, DECODE, dtype="float32").bytes
    for reads, expected in (
        (((size // 2, 4e9), (size * 2, 1e9)), 3e9),  # a third of the way from half the size to twice
        (((size * 2, 4e9), (size * 4, 1e9)), 4e9),
        (((size // 4, 4e9), (size // 2, 1e9)), 1e9),
    ):
        found = limits(shape, shape, DECODE, speed(1e15, *reads)).candidate
        assert found.min_ms == pytest.approx(size / expected * 1e3, rel=1e-3)


def test_without_a_measured_speed_the_ratio_is_that_of_what_the_phase_waits_for(layout: ModelLayout) -> None:
    wide = EngineShape(layout=layout, dtype="float32")
    narrow = EngineShape(layout=layout, dtype="float16")
    fewer = EngineShape(layout=replace(layout, layers=layout.layers[:2]), dtype="float32")
    assert limits(narrow, wide, DECODE, None).ratio == pytest.approx(0.5)
    assert limits(narrow, wide, PREFILL, None).ratio == 1.0
    found = limits(fewer, wide, PREFILL, None)
    assert found.ratio == found.candidate.flops / found.baseline.flops < 1
    assert found.candidate.min_ms is None
    assert found.candidate.bound_by is None


def test_a_ratio_of_times_can_lie_between_those_of_flops_and_bytes(layout: ModelLayout) -> None:
    """The baseline waits for memory and the candidate, of half the bytes, already for arithmetic."""
    wide, narrow = (EngineShape(layout=layout, dtype=dtype) for dtype in ("float32", "float16"))
    work = step_work(layout, DECODE, dtype="float32")
    machine = speed(work.flops / 0.75, (1, work.bytes / 1.0))
    assert limits(narrow, wide, DECODE, machine).ratio == pytest.approx(0.75)


def test_this_machine_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    found = machine_speed(1)
    assert 1e8 < found.flops_per_second < 1e13
    assert [read.buffer_bytes for read in found.reads] == sorted(read.buffer_bytes for read in found.reads)
    assert all(1e7 < read.bytes_per_second < 1e13 for read in found.reads)


def test_a_machine_whose_speed_cannot_be_measured_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that took minutes isn't lost for it."""
    monkeypatch.setattr(import_module("hlap_export.bench.roofline"), "TIMEOUT_SECONDS", 0.01)
    assert machine_speed(1) is None
