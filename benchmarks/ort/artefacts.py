"""Make what is timed: engines of ours, and what two other exporters write for the same checkpoint."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from hlap_export import build, export, prune
from hlap_export.checkpoint import read_layout
from hlap_export.plan.pruning_plan import PruningPlan, dense_plan, plan_of_alphas

ALPHA = 0.5  # any but 0, which would drop the values too; it doesn't change how long a step takes
PRECISIONS = {"float32": "fp32", "int4": "int4"}
"""Our `--dtype` -> the builder's `--precision`."""


class ExporterError(Exception):
    """Another exporter didn't write its graph; says why."""


def top_quarter_plan(checkpoint: Path) -> PruningPlan:
    """The plan whose top quarter of layers, rounded down, keeps only the values."""
    layout = read_layout(checkpoint)
    first = layout.num_layers - layout.num_layers // 4
    alphas = dict.fromkeys(range(first, layout.num_layers), ALPHA)
    return plan_of_alphas(layout, alphas, method="top quarter")


def our_engine(checkpoint: Path, plan: PruningPlan | None, work: Path, *, flavour: str, dtype: str) -> Path:
    """Prune (None: keep everything, by the same way), export and build; made anew each time."""
    folder = work / f"ours-{'pruned' if plan else 'dense'}-{flavour}-{dtype}"
    shutil.rmtree(folder, ignore_errors=True)
    prune(checkpoint, plan or dense_plan(read_layout(checkpoint)), folder / "checkpoint")
    export(folder / "checkpoint", folder / "onnx", flavour=flavour, dtype=dtype)
    build(folder / "onnx", folder / "engine")
    shutil.rmtree(folder / "checkpoint")
    shutil.rmtree(folder / "onnx")
    return folder / "engine"


def builder_graph(checkpoint: Path, work: Path, *, dtype: str) -> Path:
    """The graph that onnxruntime-genai's model builder writes with its default options; reused if it is there.

    Raises:
        ExporterError: it isn't installed, or it failed.
    """
    folder = work / f"builder-{dtype}"
    precision = PRECISIONS[dtype]
    arguments = ["-i", str(checkpoint), "-p", precision, "-e", "cpu", "-c", str(work / "builder-cache")]
    return _written(folder, [sys.executable, "-m", "onnxruntime_genai.models.builder", *arguments, "-o"])


def optimum_graph(checkpoint: Path, work: Path, *, python: Path | None) -> Path:
    """The graph that optimum-onnx writes, float32; reused if it is there.

    Args:
        checkpoint: a dense checkpoint.
        work: the folder to write to.
        python: the interpreter of an environment with optimum-onnx, which needs an older transformers than ours.

    Raises:
        ExporterError: there is no such environment, or it failed.
    """
    if python is None:
        raise ExporterError("no environment with optimum-onnx was given (--optimum-python)")
    command = [str(python), "-m", "optimum.commands.optimum_cli", "export", "onnx", "--model", str(checkpoint)]
    return _written(work / "optimum", [*command, "--task", "text-generation-with-past", "--dtype", "fp32"])


def _written(folder: Path, command: Sequence[str]) -> Path:
    """`folder`/model.onnx, after `command folder` if it isn't there yet."""
    graph = folder / "model.onnx"
    if not graph.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run([*command, str(partial)], capture_output=True, text=True, env=environment, check=False)
        if done.returncode != 0 or not (partial / graph.name).is_file():
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ExporterError(said[-1][:300])
        partial.rename(folder)
    return graph
