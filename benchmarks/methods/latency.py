"""A plan's engine against the dense one's: pruned, exported, built and timed as a run does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hlap_export import bench as bench_engines
from hlap_export import build, export, prune
from hlap_export.plan.fitted_plan import save_fitted
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.workbench import Workbench

PROMPT_LENGTHS, CONTEXT_LENGTHS = (256, 1024), (512, 2048)


def time_plans(model: Path, bench: Workbench, plan: PruningPlan, folder: Path) -> list[dict[str, Any]]:
    """Ratios to the dense engine, flavour ort: below 1 where the plan's is faster."""
    folder.mkdir(parents=True)
    fitted = None
    if plan.fits:
        fitted = folder / "plan.safetensors"
        plan = save_fitted(bench.fitting(plan), plan, fitted)
    prune(model, plan, folder / "pruned", fitted=fitted)
    for name, checkpoint in (("dense", model), ("pruned", folder / "pruned")):
        export(checkpoint, folder / f"onnx-{name}", flavour="ort")
        build(folder / f"onnx-{name}", folder / f"engine-{name}")
    report = bench_engines(
        folder / "engine-pruned",
        folder / "engine-dense",
        prompt_lengths=PROMPT_LENGTHS,
        context_lengths=CONTEXT_LENGTHS,
    )
    return [row.model_dump(mode="json") for row in report.latency]
