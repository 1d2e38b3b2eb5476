"""How fast are the reference model's engines on this machine's NVIDIA GPU, dense against pruned?

    make test-gpu          (or: python -m benchmarks.tensorrt --out benchmarks/results)

TensorRT-RTX is there after `make setup`; TensorRT is after `.venv/bin/pip install '.[trt]'`.

Runs the whole pipeline once for each engine that can run here: TensorRT, TensorRT-RTX, and ONNX Runtime's CUDA provider
to compare with, all with the plan of the first. For TensorRT's it also times prefill and decode as two engines against
the one with two profiles, which is the default. One JSON file holds everything, what became of each GPU test included;
where a test or an engine failed it says so, and the exit code is 1. Without a GPU the reasons are printed, nothing is
written, and the exit code is 3.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.provenance import provenance
from hlap_export import reference_model
from hlap_export.artifacts import write_text_whole
from hlap_export.bench import BenchOptions, bench
from hlap_export.engines import backends, build
from hlap_export.engines.trt import TensorRTOptions
from hlap_export.errors import HlapError
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


def timed_or_why_not(engines: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """What each engine did, all with the plan of the first one that got so far; and why others failed."""
    results: dict[str, Any] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as work:
        for engine in engines:
            first = next(iter(results), None)
            plan = Path(work, first, "plan.json") if first else None
            try:
                results[engine] = timed(engine, plan, Path(work, engine))
            except HlapError as error:
                failed[engine] = str(error)
    return results, failed


def test_outcomes(report: Path) -> dict[str, dict[str, str]]:
    """Each test of pytest's report: passed, or skipped, failed or error with the reason."""
    outcomes: dict[str, dict[str, str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        found = next((case.find(kind) for kind in ("error", "failure", "skipped") if case.find(kind) is not None), None)
        name = f"{case.get('classname')}::{case.get('name')}"
        outcomes[name] = (
            {"outcome": "passed"} if found is None else {"outcome": found.tag, "reason": found.get("message", "")}
        )
    return outcomes


def main(arguments: Sequence[str] | None = None) -> int:
    """Test outcomes and timings into one file; the exit code says whether everything worked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder for the JSON file")
    parser.add_argument("--tests", type=Path, help="what pytest --junitxml wrote of the GPU tests")
    asked = parser.parse_args(arguments)
    not_timed = {engine: reason for engine in ENGINES if (reason := why_not(engine))}
    for reason in not_timed.values():
        print(f"not timed: {reason}", file=sys.stderr)
    if len(not_timed) == len(ENGINES):
        return 3
    found = provenance("tensorrt")
    tests = test_outcomes(asked.tests) if asked.tests else {}
    results, failed = timed_or_why_not([engine for engine in ENGINES if engine not in not_timed])
    result = found | {"engines": results, "not_timed": not_timed | failed, "tests": tests}
    path = asked.out / f"{found['date']}_tensorrt.json"
    write_text_whole(path, json.dumps(result, indent=1) + "\n")
    print(path)
    bad = [name for name, test in tests.items() if test["outcome"] in ("failure", "error")]
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=sys.stderr)
    return 1 if failed or bad else 0


if __name__ == "__main__":
    sys.exit(main())
