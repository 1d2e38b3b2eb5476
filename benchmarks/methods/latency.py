"""Engines of plans, pruned, exported and built as a run does it, timed against each other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hlap_export import bench as bench_engines
from hlap_export import build, export, prune
from hlap_export.bench import BenchOptions
from hlap_export.plan.fitted_plan import save_fitted
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.workbench import Workbench

PROMPT_LENGTHS, CONTEXT_LENGTHS = (256, 1024), (512, 2048)
FLAVOURS = ("ort", "portable")
"""`ort` runs a prefill's last token alone through what follows the last attention; `portable` runs all of them."""


class Engines:
    """Engines below a folder.

    Args:
        model: the dense checkpoint.
        folder: where they are written.
    """

    def __init__(self, model: Path, folder: Path) -> None:
        self._model, self._folder = model, folder
        self.dense = {flavour: self._built(model, "dense", flavour) for flavour in FLAVOURS}

    def made(self, name: str, bench: Workbench, plan: PruningPlan) -> dict[str, Path]:
        """The engines of a plan, one for each flavour."""
        fitted, folder = None, self._folder / name
        folder.mkdir(parents=True)
        if plan.fits:
            fitted = folder / "plan.safetensors"
            plan = save_fitted(bench.fitting(plan), plan, fitted)
        prune(self._model, plan, folder / "checkpoint", fitted=fitted)
        return {flavour: self._built(folder / "checkpoint", name, flavour) for flavour in FLAVOURS}

    def path(self, name: str, flavour: str) -> Path:
        """Where a plan's engine lies."""
        return self._folder / name / f"engine-{flavour}"

    def forget(self, name: str) -> None:
        """Remove a plan's engines."""
        shutil.rmtree(self._folder / name)

    def _built(self, checkpoint: Path, name: str, flavour: str) -> Path:
        graph = self._folder / name / f"onnx-{flavour}"
        export(checkpoint, graph, flavour=flavour)
        build(graph, self.path(name, flavour))
        return self.path(name, flavour)


def timed(candidate: Path, baseline: Path, options: BenchOptions) -> list[dict[str, Any]]:
    """Ratios at every point: below 1 where the candidate is faster."""
    report = bench_engines(
        candidate, baseline, prompt_lengths=PROMPT_LENGTHS, context_lengths=CONTEXT_LENGTHS, options=options
    )
    kept = {"phase", "num_tokens", "ratio", "ratio_low", "ratio_high", "noise"}
    return [row.model_dump(mode="json", include=kept) for row in report.latency]
