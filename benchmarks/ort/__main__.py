"""How fast are our engines in ONNX Runtime, against other exporters' graphs and PyTorch, and pruned against dense?

    python -m benchmarks.ort --out benchmarks/results --optimum-python PEER_VENV/bin/python

Everything runs in one process, in turn, with the same number of threads: our dense engine; ours with the top quarter of
its layers reduced to values; the graph of onnxruntime-genai's builder (`pip install onnxruntime-genai`), of the same
precision; in float32 also the graph of optimum-onnx and the model in PyTorch. optimum-onnx needs an older transformers,
so an environment of its own (`pip install optimum-onnx onnxruntime`) writes its graph, and this process runs it. All
models take about an hour and a half on two cores, and 16 GiB; `--model llama-30m` a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.ort.artefacts import (
    PRECISIONS,
    ExporterError,
    builder_graph,
    optimum_graph,
    our_engine,
    top_quarter_plan,
)
from benchmarks.ort.contenders import SEED, Contender, ForeignGraph, OurEngine, TorchModel
from benchmarks.ort.limits import limit
from benchmarks.ort.models import CONTEXT_LENGTHS, MODELS, PREFILL_LENGTHS, checkpoint_of, points_of
from benchmarks.ort.report import RATIOS, PointResult, Ratio, markdown, summary
from benchmarks.ort.rounds import pair, time_rounds
from benchmarks.provenance import provenance
from hlap_export.artifacts import write_text_whole
from hlap_export.bench.latency import Protocol
from hlap_export.bench.work import Point
from hlap_export.checkpoint import ModelLayout, read_layout
from hlap_export.engines import open_session, usable_cores

# A graph that keeps the whole matrix of attention scores would need a multiple of this.
MAX_SCORES_BYTES = 3 * 2**30
WARMEST_ROUNDS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is timed, and how."""

    flavour: str
    threads: int
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    protocol: Protocol
    optimum_python: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Field:
    """The contenders of one model in one precision."""

    model: str
    dtype: str
    dense: ModelLayout
    pruned: ModelLayout
    contenders: dict[str, Contender]
    absent: dict[str, str]


def measure(model: str, dtype: str, work: Path, options: Options) -> Iterator[PointResult]:
    """Time every point of one model in one precision."""
    checkpoint = checkpoint_of(model, work)
    folder = work / f"{model}-made"
    with ExitStack() as open_engines:
        field = _field(model, checkpoint, dtype, folder, options, open_engines)
        for point in points_of(field.dense, options.prompts, options.contexts):
            yield _measure_point(field, point, options.protocol)


def _field(model: str, checkpoint: Path, dtype: str, folder: Path, options: Options, open_engines: ExitStack) -> Field:
    layout = read_layout(checkpoint)
    contenders: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    engines = {
        name: our_engine(checkpoint, plan, folder, flavour=options.flavour, dtype=dtype)
        for name, plan in (("dense", None), ("pruned", top_quarter_plan(checkpoint)))
    }
    for name, engine in engines.items():
        session = open_engines.enter_context(open_session(engine, threads=options.threads))
        contenders[name] = OurEngine(session)
        if name == "dense":
            contenders["dense, all logits"] = OurEngine(session, all_logits=True)
    try:
        graph = builder_graph(checkpoint, folder, dtype=dtype)
        contenders["builder"] = ForeignGraph(graph, layout, threads=options.threads)
    except ExporterError as error:
        absent["builder"] = str(error)
    if dtype == "float32":
        try:
            graph = optimum_graph(checkpoint, folder, python=options.optimum_python)
            contenders["optimum"] = ForeignGraph(graph, layout, threads=options.threads)
        except ExporterError as error:
            absent["optimum"] = str(error)
        contenders["torch"] = TorchModel(checkpoint, layout, threads=options.threads)
    return Field(
        model=model,
        dtype=dtype,
        dense=layout,
        pruned=read_layout(engines["pruned"]),
        contenders=contenders,
        absent=absent,
    )


def _measure_point(field: Field, point: Point, protocol: Protocol) -> PointResult:
    left_out = dict(field.absent)
    scores_bytes = 4 * field.dense.num_heads * point.num_tokens**2
    if "optimum" in field.contenders and point.phase == "prefill" and scores_bytes > MAX_SCORES_BYTES:
        left_out["optimum"] = f"it holds all attention scores, {scores_bytes / 2**30:.0f} GiB for one copy of a layer's"
    steps = {
        name: contender.step(point.phase, point.num_tokens)
        for name, contender in field.contenders.items()
        if name not in left_out and (point.phase == "prefill" or name != "dense, all logits")
    }
    seconds = time_rounds(steps, protocol)
    ratios = [Ratio.of(*names, pair(seconds, *names), seed=SEED) for names in RATIOS if set(names) <= set(seconds)]
    return PointResult(
        model=field.model,
        dtype=field.dtype,
        point=point,
        milliseconds={name: float(sorted(taken)[len(taken) // 2]) * 1e3 for name, taken in seconds.items()},
        ratios=tuple(ratios),
        limit=limit(field.pruned, field.dense, point.phase, point.num_tokens, dtype=field.dtype),
        left_out=left_out,
    )


def _facts(options: Options) -> dict[str, Any]:
    found = provenance("ort_latency")
    versions = found["versions"] | _peer_versions(options.optimum_python)
    return found | {"flavour": options.flavour, "threads": options.threads, "batch": 1, "versions": versions}


def _peer_versions(optimum_python: Path | None) -> dict[str, str]:
    versions: dict[str, str] = {}
    with suppress(metadata.PackageNotFoundError):
        versions["onnxruntime-genai"] = metadata.version("onnxruntime-genai")
    if optimum_python is not None:
        code = "from importlib.metadata import version as v; print(v('optimum-onnx'), v('transformers'))"
        said = subprocess.run([str(optimum_python), "-c", code], capture_output=True, text=True, check=True).stdout
        versions["optimum-onnx"], versions["transformers (optimum-onnx)"] = said.split()
    return versions


def _print_point(result: PointResult) -> None:
    times = ", ".join(f"{name} {value:.2f}" for name, value in result.milliseconds.items())
    pruned = result.ratio("pruned", "dense")
    said = f"; pruned / dense {pruned.ratio:.3f}, limit {result.limit.ratio:.3f}" if pruned else ""
    print(
        f"{result.model} {result.dtype} {result.point.phase} {result.point.num_tokens}: {times} ms{said}",
        file=sys.stderr,
        flush=True,
    )


def _write(out: Path, facts: dict[str, Any], results: Sequence[PointResult]) -> Path:
    path = out / f"{facts['date']}_ort_latency.json"
    facts = facts | {"summary": summary(results)}
    points = [asdict(result) for result in results]
    write_text_whole(path, json.dumps(facts | {"points": points}, indent=2) + "\n")
    write_text_whole(path.with_suffix(".md"), markdown(facts, results))
    return path


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, action="append", help="again for another; left out: all of them")
    parser.add_argument("--dtype", choices=PRECISIONS, action="append", help="again for another; left out: both")
    parser.add_argument("--flavour", default="ort", help="of our engines")
    parser.add_argument("--prefill", type=int, nargs="*", default=PREFILL_LENGTHS)
    parser.add_argument("--decode", type=int, nargs="*", default=CONTEXT_LENGTHS)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--seconds", type=float, default=120.0, help="for a point, unless three rounds take longer")
    parser.add_argument("--optimum-python", type=Path, help="python of an environment with optimum-onnx")
    parser.add_argument("--work", type=Path, help="keeps models and the other exporters' graphs for the next run")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def main() -> None:
    arguments = _parsed()
    options = Options(
        flavour=arguments.flavour,
        threads=arguments.threads,
        prompts=tuple(arguments.prefill),
        contexts=tuple(arguments.decode),
        protocol=Protocol(
            repeats=WARMEST_ROUNDS,
            min_seconds=min(5.0, arguments.seconds),
            max_seconds=arguments.seconds,
        ),
        optimum_python=arguments.optimum_python,
    )
    facts = _facts(options)
    results: list[PointResult] = []
    with tempfile.TemporaryDirectory() as temporary:
        work = arguments.work or Path(temporary)
        for model in arguments.model or MODELS:
            for dtype in arguments.dtype or PRECISIONS:
                for result in measure(model, dtype, work, options):
                    _print_point(result)
                    results.append(result)
                    path = _write(arguments.out, facts, results)
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
