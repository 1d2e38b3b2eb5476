"""The ratio that pruning allows, and the plan that is timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.ort.artefacts import top_quarter_plan
from benchmarks.ort.limits import limit
from hlap_export.bench.report import Phase
from hlap_export.checkpoint import read_layout
from hlap_export.plan.pruning_plan import Skip, ValueOnly
from hlap_export.prune import prune
from tests.plans import tiny_plan
from tests.tiny import save_tiny

LENGTH = 24


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", "llama")


def test_the_limit_is_the_ratio_that_the_phase_is_bound_by(dense: Path) -> None:
    layout = read_layout(dense)
    prune(dense, tiny_plan("suffix", layout), dense.parent / "pruned")
    smaller = read_layout(dense.parent / "pruned")
    bounds: dict[Phase, str] = {"prefill": "flops_ratio", "decode": "bytes_ratio"}
    for phase, bound in bounds.items():
        found = limit(smaller, layout, phase, LENGTH, dtype="float32")
        assert found.flops_ratio != found.bytes_ratio
        assert found.ratio == getattr(found, bound) < 1


def test_the_top_quarter_loses_its_attention_and_no_other_layer(dense: Path) -> None:
    attention = top_quarter_plan(dense).attention
    assert [isinstance(layer, ValueOnly | Skip) for layer in attention] == [False, False, False, True]
    assert isinstance(attention[-1], ValueOnly)
