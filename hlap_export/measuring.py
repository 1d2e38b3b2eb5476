"""The latency of a plan's engine, measured: pruned, exported, built and timed against the dense one, as a run does it.

A plan that is still searched has no fitted weights yet; zeros of their shapes take as long.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hlap_export.bench import BenchOptions, bench
from hlap_export.checkpoint import read_layout
from hlap_export.engines import build
from hlap_export.export import export
from hlap_export.plan.fitted_plan import save_fitted
from hlap_export.plan.fitting import Fitting
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.side_file import fitted_shapes, side_file_of
from hlap_export.prune import prune
from hlap_export.recipe import Recipe


def measured_with(asked: Recipe) -> dict[str, Any]:
    """What of a recipe decides the latency of a plan's engine."""
    return asked.model_dump(mode="json", include={"export", "engine", "tensorrt", "bench"})


@contextmanager
def measuring(model: Path, asked: Recipe, *, wanted: bool) -> Generator[LatencyMeter | None]:
    """A meter with a temporary folder for its engines; None where latency is to be counted."""
    if not wanted:
        yield None
        return
    with TemporaryDirectory(prefix="hlap-export-engines-") as folder:
        yield LatencyMeter(model, asked, Path(folder))


class LatencyMeter:
    """Latency of plans relative to the dense model, on this machine.

    Args:
        model: the dense checkpoint.
        asked: how a run would export, build and time its engines.
        folder: where they are built; the dense one stays there, every other is removed once it is timed.
    """

    def __init__(self, model: Path, asked: Recipe, folder: Path) -> None:
        self._model, self._asked, self._folder = model, asked, folder
        self._layout = read_layout(model)

    @property
    def settings(self) -> dict[str, Any]:
        """The sections of the recipe that decide a latency."""
        return measured_with(self._asked)

    def __call__(self, plan: PruningPlan, /) -> float:
        """The largest ratio of all lengths and both phases, its interval's upper end: at most that much of the time."""
        dense = self._folder / "dense"
        if not dense.exists():
            self._build(self._model, dense)
        shutil.rmtree(self._folder / "planned", ignore_errors=True)
        self._build(self._prune(plan), self._folder / "planned" / "engine")
        section = self._asked.bench
        report = bench(
            self._folder / "planned" / "engine",
            dense,
            prompt_lengths=section.prompt_lengths,
            context_lengths=section.context_lengths,
            options=BenchOptions(batches=section.batches, repeats=section.repeats, rounds=section.rounds),
        )
        return max(row.ratio_high for row in report.latency)

    def _prune(self, plan: PruningPlan) -> Path:
        folder = self._folder / "planned"
        folder.mkdir(parents=True)
        shapes = fitted_shapes(plan, self._layout)
        weights = side_file_of(folder / "plan.json")
        if plan.fits:
            tensors = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}
            plan = save_fitted(Fitting(tensors=tensors, parts=(), losses_nats=(), num_tokens=1), plan, weights)
        prune(self._model, plan, folder / "checkpoint", fitted=weights if plan.fits else None)
        return folder / "checkpoint"

    def _build(self, checkpoint: Path, engine: Path) -> None:
        graph = engine.with_name(f"{engine.name}-onnx")
        shutil.rmtree(graph, ignore_errors=True)
        section = self._asked.export
        export(checkpoint, graph, flavour=section.flavour, dtype=section.dtype, block_size=section.block_size)
        build(graph, engine, engine=self._asked.engine, options=self._asked.tensorrt_options)
        shutil.rmtree(graph)
