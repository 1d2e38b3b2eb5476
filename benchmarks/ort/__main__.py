"""How fast are our engines in ONNX Runtime, against other exporters' graphs and PyTorch, and pruned against dense?

    python -m benchmarks.ort --out benchmarks/results --optimum-python PEER_VENV/bin/python

Everything runs in one process, in turn, with the same number of threads: our dense engine; ours with the top quarter of
its layers reduced to values; the graph of onnxruntime-genai's builder (`pip install onnxruntime-genai`), of the same
precision; in float32 also the graph of optimum-onnx and the model in PyTorch. Graphs of others run in sessions with our
options, worker threads that stay awake during a run among them.

All are loaded anew several times, and a decode step is timed at several contexts up to the one asked for, because at
one length it draws lots: ONNX Runtime's attention, with two threads, sums up a head's output in a scratch whose address
depends on the session and the length, and where that lies across two pages of memory the whole step takes up to a
quarter longer, every time. About one in six draws that, of any graph; a loop that generates text passes through all
lengths. A ratio is the median of those of all draws, each taken in turn at the same length.

optimum-onnx needs an older transformers, so an environment of its own (`pip install optimum-onnx onnxruntime`) writes
its graph, and this process runs it. All models take about an hour and a half on two cores, and 16 GiB; `--model
llama-30m` a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ort.artefacts import (
    PRECISIONS,
    ExporterError,
    builder_graph,
    optimum_graph,
    our_engine,
    top_quarter_plan,
)
from benchmarks.ort.contenders import Contender, ForeignGraph, OurEngine, TorchModel
from benchmarks.ort.limits import limit
from benchmarks.ort.models import CONTEXT_LENGTHS, MODELS, PREFILL_LENGTHS, checkpoint_of, lengths_of, points_of
from benchmarks.ort.report import RATIOS, PointResult, Ratio, markdown, summary
from benchmarks.ort.rounds import time_rounds
from benchmarks.provenance import provenance
from hlap_export.artifacts import write_text_whole
from hlap_export.bench.latency import Protocol
from hlap_export.bench.statistics import Seconds
from hlap_export.bench.work import Point
from hlap_export.checkpoint import ModelLayout, read_layout
from hlap_export.engines import open_session, usable_cores

# A graph that keeps the whole matrix of attention scores would need a multiple of this.
MAX_SCORES_BYTES = 2 * 2**30
LOADS, FEWEST_LOADS, FEWEST_ROUNDS = 5, 2, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What is timed, and how."""

    flavour: str
    threads: int
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    loads: int
    max_seconds: float
    protocol: Protocol
    optimum_python: Path | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Artefacts:
    """What the contenders of one model in one precision are loaded from: engines of ours, graphs of others."""

    checkpoint: Path
    dtype: str
    engines: dict[str, Path]
    graphs: dict[str, Path]
    absent: dict[str, str]


def measure(model: str, dtype: str, work: Path, options: Options) -> Iterator[PointResult]:
    """Time every point of one model in one precision, in every load."""
    made = _made(checkpoint_of(model, work), dtype, work / f"{model}-made", options)
    dense, pruned = read_layout(made.checkpoint), read_layout(made.engines["pruned"])
    points = points_of(dense, options.prompts, options.contexts)
    left_out = {point: made.absent | _too_large(made, dense, point) for point in points}
    draws: dict[Point, list[Mapping[str, Seconds]]] = {point: [] for point in points}
    for number in range(options.loads):
        with ExitStack() as open_engines:
            contenders = _loaded(made, dense, options.threads, open_engines)
            for point in points:
                if number < FEWEST_LOADS or sum(map(_spent, draws[point])) < options.max_seconds:
                    draws[point] += _drawn(contenders, point, left_out[point], options.protocol)
        print(f"{model} {dtype}: load {number + 1} of {options.loads}", file=sys.stderr, flush=True)
    for point, timed in draws.items():
        medians = [{name: float(np.median(taken)) * 1e3 for name, taken in draw.items()} for draw in timed]
        names = medians[0].keys()
        yield PointResult(
            model=model,
            dtype=dtype,
            point=point,
            milliseconds={name: statistics.median(draw[name] for draw in medians) for name in names},
            draws=tuple(medians),
            ratios=tuple(Ratio.of(*both, medians) for both in RATIOS if names >= set(both)),
            limit=limit(pruned, dense, point.phase, round(statistics.mean(lengths_of(point))), dtype=dtype),
            left_out=left_out[point],
        )


def _drawn(
    contenders: Mapping[str, Contender], point: Point, left_out: Mapping[str, str], protocol: Protocol
) -> list[Mapping[str, Seconds]]:
    """Time a point's lengths in one load; the caches of a decode step are freed before the next length."""
    timed = {
        name: contender
        for name, contender in contenders.items()
        if name not in left_out and (point.phase == "prefill" or name != "dense, all logits")
    }
    return [
        time_rounds({name: contender.step(point.phase, length) for name, contender in timed.items()}, protocol)
        for length in lengths_of(point)
    ]


def _spent(draw: Mapping[str, Seconds]) -> float:
    return float(sum(taken.sum() for taken in draw.values()))


def _made(checkpoint: Path, dtype: str, folder: Path, options: Options) -> Artefacts:
    engines = {
        name: our_engine(checkpoint, plan, folder, flavour=options.flavour, dtype=dtype)
        for name, plan in (("dense", None), ("pruned", top_quarter_plan(checkpoint)))
    }
    graphs: dict[str, Path] = {}
    absent: dict[str, str] = {}
    exporters = {"builder": lambda: builder_graph(checkpoint, folder, dtype=dtype)}
    if dtype == "float32":
        exporters["optimum"] = lambda: optimum_graph(checkpoint, folder, python=options.optimum_python)
    for name, exported in exporters.items():
        try:
            graphs[name] = exported()
        except ExporterError as error:
            absent[name] = str(error)
    return Artefacts(checkpoint=checkpoint, dtype=dtype, engines=engines, graphs=graphs, absent=absent)


def _loaded(made: Artefacts, dense: ModelLayout, threads: int, open_engines: ExitStack) -> dict[str, Contender]:
    contenders: dict[str, Contender] = {}
    for name, engine in made.engines.items():
        session = open_engines.enter_context(open_session(engine, threads=threads))
        contenders[name] = OurEngine(session)
        if name == "dense":
            contenders["dense, all logits"] = OurEngine(session, all_logits=True)
    for name, graph in made.graphs.items():
        contenders[name] = ForeignGraph(graph, dense, threads=threads)
    if made.dtype == "float32":
        contenders["torch"] = TorchModel(made.checkpoint, dense, threads=threads)
    return contenders


def _too_large(made: Artefacts, dense: ModelLayout, point: Point) -> dict[str, str]:
    scores_bytes = 4 * dense.num_heads * point.num_tokens**2
    if "optimum" not in made.graphs or point.phase == "decode" or scores_bytes <= MAX_SCORES_BYTES:
        return {}
    return {"optimum": f"it holds all attention scores, {scores_bytes / 2**30:.0f} GiB for one copy of a layer's"}


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
    parser.add_argument("--loads", type=int, default=LOADS, help="how often all are loaded anew and timed")
    parser.add_argument(
        "--seconds", type=float, default=25.0, help="for a point, of all loads, unless its fewest rounds take longer"
    )
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
            repeats=FEWEST_ROUNDS,
            min_seconds=min(0.25, arguments.seconds),
            max_seconds=arguments.seconds / arguments.loads,
        ),
        loads=arguments.loads,
        max_seconds=arguments.seconds,
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
