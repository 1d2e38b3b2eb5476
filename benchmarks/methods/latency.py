"""Engines of plans, pruned, exported and built as a run does it, timed against each other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hlap_export import bench as bench_engines
from hlap_export import build, export, prune
from hlap_export.bench import BenchOptions
from hlap_export.plan.fitted_plan import save_fitted
from hlap_export.plan.fitting import Fitting
from hlap_export.plan.pruning_plan import PruningPlan

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
        self.dense = self._built(model, "dense", "ort")

    def make(self, name: str, plan: PruningPlan, fitting: Fitting | None) -> Path:
        """The plan's engine of flavour ort."""
        fitted, folder = None, self._folder / name
        folder.mkdir(parents=True)
        if fitting is not None:
            fitted = folder / "plan.safetensors"
            plan = save_fitted(fitting, plan, fitted)
        prune(self._model, plan, folder / "checkpoint", fitted=fitted)
        return self.built(name, "ort")

    def built(self, name: str, flavour: str) -> Path:
        """An engine of a plan that has been pruned for another one."""
        return self._built(self._folder / name / "checkpoint", name, flavour)

    def forget(self, name: str) -> None:
        """Remove a plan's engines."""
        shutil.rmtree(self._folder / name)

    def _built(self, checkpoint: Path, name: str, flavour: str) -> Path:
        graph, engine = (self._folder / name / f"{kind}-{flavour}" for kind in ("onnx", "engine"))
        if not engine.exists():
            export(checkpoint, graph, flavour=flavour)
            build(graph, engine)
        return engine


def timed(candidate: Path, baseline: Path, options: BenchOptions) -> list[dict[str, Any]]:
    """Ratios at every point: below 1 where the candidate is faster."""
    report = bench_engines(
        candidate, baseline, prompt_lengths=PROMPT_LENGTHS, context_lengths=CONTEXT_LENGTHS, options=options
    )
    kept = {"phase", "num_tokens", "ratio", "ratio_low", "ratio_high", "noise"}
    return [row.model_dump(mode="json", include=kept) for row in report.latency]
