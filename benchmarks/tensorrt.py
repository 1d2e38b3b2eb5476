"""How fast are the reference model's engines on this machine's NVIDIA GPU, dense against pruned?

    make test-gpu          (or: python -m benchmarks.tensorrt --out benchmarks/results)

Runs the whole pipeline once for each engine that can run here: TensorRT, TensorRT-RTX, and ONNX Runtime's CUDA provider
to compare with, all with the plan of the first. For TensorRT's it also times prefill and decode as two engines against
the one with two profiles, which is the default. One JSON file holds everything; without a GPU the reasons are printed
and nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.provenance import provenance
from hlap_export import reference_model
from hlap_export.artifacts import write_text_whole
from hlap_export.bench import BenchOptions, bench
from hlap_export.engines import backends, build
from hlap_export.engines.trt import TensorRTOptions
from hlap_export.pipeline import run
from hlap_export.recipe import ExportSection, PlanSection, Recipe
from hlap_export.terminal import progress

ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")
LENGTHS = {"prompt_lengths": (64, 256, 1024), "context_lengths": (64, 512, 2000)}


def why_not(engine: str) -> str | None:
    """Why an engine can't be timed here; None if it can."""
    backend = backends()[engine]
    problem = backend.why_unavailable() or backend.why_not_runnable()
    return problem and f"{engine}: {problem.found}"


def timed(engine: str, plan: Path | None, out: Path) -> dict[str, Any]:
    """The summary of a whole run in float16, and for TensorRT's engines one against two."""
    flavour = "ort" if engine == "onnxruntime-cuda" else "trt"
    recipe = Recipe(
        engine=engine,  # type: ignore[arg-type]
        plan=PlanSection(file=plan),
        export=ExportSection(flavour=flavour, dtype="float16"),
    )
    summary = run(reference_model.path(), out, recipe=recipe, progress=progress())
    found: dict[str, Any] = {"summary": summary.model_dump(mode="json")}
    if flavour == "trt":
        build(out / "onnx/dense", out / "two", engine=engine, options=TensorRTOptions(two_engines=True))
        report = bench(out / "two", out / "engine/dense", **LENGTHS, options=BenchOptions())
        found["two_engines_against_one"] = report.model_dump(mode="json")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the JSON file")
    out: Path = parser.parse_args().out
    reasons = {engine: why_not(engine) for engine in ENGINES}
    for reason in filter(None, reasons.values()):
        print(f"not timed: {reason}", file=sys.stderr)
    usable = [engine for engine, reason in reasons.items() if reason is None]
    if not usable:
        sys.exit(3)
    found = provenance("tensorrt")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        for engine in usable:
            first = next(iter(results), None)
            plan = Path(work, first, "plan.json") if first else None
            results[engine] = timed(engine, plan, Path(work, engine))
    result = found | {"engines": results, "not_timed": reasons}
    path = out / f"{found['date']}_tensorrt.json"
    write_text_whole(path, json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
