"""Latency is measured on engines of the planned layers, against a dense one that is built once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hlap_export import measuring
from hlap_export.checkpoint import read_layout
from hlap_export.plan.layer_plan import Keep, Skip, linear_of
from hlap_export.plan.pruning_plan import ModelIdentity, PruningPlan
from hlap_export.recipe import Recipe
from tests.tiny import save_tiny


def test_the_upper_end_of_the_slowest_row_of_the_planned_engine_counts_and_the_dense_engine_is_built_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    layout = read_layout(dense)
    timed: list[tuple[list[str], list[str]]] = []
    built: list[str] = []

    def bench(candidate: Path, baseline: Path, **options: Any) -> SimpleNamespace:
        assert options["prompt_lengths"] == Recipe().bench.prompt_lengths
        kinds = [[layer.kind for layer in read_layout(engine).layers] for engine in (candidate, baseline)]
        timed.append((kinds[0], kinds[1]))
        return SimpleNamespace(
            latency=[SimpleNamespace(ratio=0.8, ratio_high=0.95), SimpleNamespace(ratio=0.9, ratio_high=0.91)]
        )

    def build(graph: Path, out: Path, **options: Any) -> None:
        built.append(out.name)
        original(graph, out, **options)

    original = measuring.build
    monkeypatch.setattr(measuring, "bench", bench)
    monkeypatch.setattr(measuring, "build", build)
    linear = linear_of("full", layout)
    with measuring.measuring(dense, Recipe(), wanted=True) as meter:
        assert meter is not None
        for top in (linear, Skip()):
            plan = PruningPlan(method="t", model=ModelIdentity.of(layout), attention=(Keep(), Keep(), Keep(), top))
            assert meter(plan) == 0.95
    full = ["full"] * 4
    assert timed == [(["full", "full", "full", "linear"], full), (["full", "full", "full", "skip"], full)]
    assert built == ["dense", "engine", "engine"]


def test_nothing_is_built_where_latency_is_counted(tmp_path: Path) -> None:
    with measuring.measuring(tmp_path, Recipe(), wanted=False) as meter:
        assert meter is None
