"""Prune and export a random checkpoint of a real shape: minutes, peak memory and disk, beside copying and peers.

    python -m benchmarks.large_models.prune_export --shape llama-3.1-8b --dtype bfloat16 --work DIR --out RESULTS
    python -m benchmarks.large_models.prune_export --shape llama-3.2-1b --dtype float32 --work DIR --out RESULTS \
        --optimum-python peer/bin/python --genai-python .venv/bin/python --engine verify
    python -m benchmarks.large_models.prune_export --shape llama-3.1-8b --flavour ort --dtype int4 --work DIR \
        --out RESULTS --engine generate

Each step is a process of its own, started with cold inputs, in turn, `--repeats` times. Peers export the dense
checkpoint, and so do we beside them. What the budget predicted stands beside what was measured. `--engine` goes on with
what was exported: an engine that is verified against the pruned checkpoint, or that writes a few tokens.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.large_models.measured import CommandFailed, folder_bytes, forget_cached, measure
from benchmarks.provenance import provenance

# The alphas that HARP's authors released for Llama-3.1-8B, last layer first; other depths take the nearest in rank.
RELEASED_ALPHAS = (0.8, 0.2, 0.1, 0.1, 0.0, 0.1, 0.0, 0.0)

OPTIMUM = """
import sys
from optimum.exporters.onnx import main_export
task = "text-generation-with-past"
main_export(sys.argv[1], sys.argv[2], task=task, dtype="fp32", do_validation=False, no_post_process=True)
"""
CHECK = "import onnx, sys; onnx.checker.check_model(sys.argv[1])"
COPY = """
import os, shutil, sys
for source, target in zip(sys.argv[1::2], sys.argv[2::2]):
    shutil.copytree(source, target)
    for name in os.listdir(target):
        with open(os.path.join(target, name), "rb") as file:
            os.fsync(file.fileno())
"""

# Enough to compare every layer; the text that random weights are scored on says nothing.
VERIFY_RECIPE = "verify: {windows: 4, window_length: 128, decode_steps: 32}\n"
NEW_TOKENS = "16"

Case = tuple[str, list[str], Path, Path]
"""Name, command, the folder that it reads, the folder that it writes."""


def ours(*arguments: str | Path) -> list[str]:
    """One of our verbs as a command."""
    return [sys.executable, "-m", "hlap_export.cli", *map(str, arguments)]


def make_inputs(options: argparse.Namespace, checkpoint: Path, plan: Path, log: Path) -> None:
    """The random checkpoint, unless it is there, and a plan for the top quarter of its layers."""
    options.work.mkdir(parents=True, exist_ok=True)
    if not checkpoint.is_dir():
        make = [sys.executable, "-m", "benchmarks.large_models.random_checkpoint", "--shape", options.shape]
        measure([*make, "--out", str(checkpoint)], watch=options.work, log=log)
    num_layers = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
    alphas = [f"--alpha={layer}={alpha}" for layer, alpha in stretched_alphas(num_layers).items()]
    measure(ours("plan", checkpoint, "--method", "fixed", *alphas, "--out", plan), watch=options.work, log=log)


def stretched_alphas(num_layers: int) -> dict[int, float]:
    """Alphas for the top quarter of a model of any depth, in the released pattern: 8 of 32 layers have it as it is."""
    count = max(1, num_layers // 4)
    return {num_layers - 1 - rank: RELEASED_ALPHAS[rank * len(RELEASED_ALPHAS) // count] for rank in range(count)}


def cases(options: argparse.Namespace, checkpoint: Path, plan: Path) -> Iterator[Case]:
    """What is measured, in order; what a later case reads is removed only at the end of the round."""
    work = options.work
    pruned, onnx = work / "pruned", work / "onnx-pruned"
    copy = [sys.executable, "-c", COPY]
    yield "copy checkpoint", [*copy, str(checkpoint), str(work / "copy")], checkpoint, work / "copy"
    yield "prune", ours("prune", checkpoint, "--plan", plan, "--out", pruned), checkpoint, pruned
    export = ("--flavour", options.flavour, "--dtype", options.dtype)
    yield "export pruned", ours("export", pruned, *export, "--out", onnx), pruned, onnx
    yield "copy export", [*copy, str(onnx), str(work / "copy")], onnx, work / "copy"
    yield "check export", [sys.executable, "-c", CHECK, str(onnx / "model.onnx")], onnx, work / "nothing"
    if options.engine is not None:
        engine = work / "engine"
        yield "build pruned", ours("build", onnx, "--out", engine), onnx, engine
        if options.engine == "verify":
            recipe = work / "verify.yaml"
            recipe.write_text(VERIFY_RECIPE)
            check = ours("verify", engine, "--reference", pruned, "--recipe", recipe)
        else:
            check = ours("generate", engine, "--prompt", "def", "--max-new-tokens", NEW_TOKENS)
        yield f"{options.engine} pruned", check, engine, work / "nothing"
    if options.optimum_python is None and options.genai_python is None:
        return
    for flavour in ("portable", "ort"):
        out = work / f"onnx-dense-{flavour}"
        command = ours("export", checkpoint, "--flavour", flavour, "--dtype", "float32", "--out", out)
        yield f"dense fp32: ours, {flavour}", command, checkpoint, out
    if options.optimum_python is not None:
        out = work / "optimum"
        command = [str(options.optimum_python), "-c", OPTIMUM, str(checkpoint), str(out)]
        yield "dense fp32: optimum-onnx", command, checkpoint, out
    if options.genai_python is not None:
        out = work / "genai"
        builder = [str(options.genai_python), "-m", "onnxruntime_genai.models.builder"]
        arguments = ["-i", str(checkpoint), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(work / "genai-cache")]
        yield "dense fp32: genai builder", [*builder, *arguments], checkpoint, out


KEPT_FOR_LATER = {"prune": "pruned", "export pruned": "onnx-pruned", "build pruned": "engine"}
"""Case -> the folder that it leaves for later ones."""


def run_round(options: argparse.Namespace, checkpoint: Path, plan: Path, samples: dict[str, list[Any]]) -> None:
    """Every case once; outputs that no later case reads are removed at once, for the disk's sake."""
    for name, command, source, out in cases(options, checkpoint, plan):
        forget_cached(source)
        try:
            measured = measure(command, watch=options.work, log=options.work / "log.txt")
            samples.setdefault(name, []).append(asdict(measured))
            print(f"{name}: {measured.seconds:.1f} s, {measured.peak_rss_bytes / 2**20:.0f} MiB peak", flush=True)
        except CommandFailed as failure:
            samples.setdefault(name, []).append({"failed": str(failure)})
            print(f"{name}: failed: {failure}", flush=True)
        if name not in KEPT_FOR_LATER:
            shutil.rmtree(out, ignore_errors=True)
    for name in (*KEPT_FOR_LATER.values(), "genai-cache"):
        shutil.rmtree(options.work / name, ignore_errors=True)


def summarised(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median time and the largest peaks of a case's rounds."""
    good = [sample for sample in samples if "failed" not in sample]
    if not good:
        return {"failed": samples[-1]["failed"]}
    return {
        "seconds_median": statistics.median(sample["seconds"] for sample in good),
        "cpu_seconds_median": statistics.median(sample["cpu_seconds"] for sample in good),
        "peak_rss_bytes": max(sample["peak_rss_bytes"] for sample in good),
        "peak_disk_bytes": max(sample["peak_disk_bytes"] for sample in good),
        "disk_bytes": max(sample["disk_bytes"] for sample in good),
        "rounds": list(good),
    }


COMPARED = (
    ("prune", "copy checkpoint"),
    ("export pruned", "copy export"),
    *(
        (f"dense fp32: ours, {flavour}", f"dense fp32: {peer}")
        for flavour in ("portable", "ort")
        for peer in ("optimum-onnx", "genai builder")
    ),
)


def ratios(cases: dict[str, Any]) -> list[str]:
    """Each case over what it stands beside, the range over the rounds in brackets; copying has no peak to speak of."""
    lines: list[str] = []
    for name, other in COMPARED:
        if any("rounds" not in cases.get(case, {}) for case in (name, other)):
            continue
        ours, theirs = cases[name], cases[other]
        rounds = [one["seconds"] / two["seconds"] for one, two in zip(ours["rounds"], theirs["rounds"], strict=False)]
        line = f"* {name} / {other}: time {ours['seconds_median'] / theirs['seconds_median']:.2f}"
        line += f" ({min(rounds):.2f} to {max(rounds):.2f})"
        if not other.startswith("copy"):
            line += f", peak memory {ours['peak_rss_bytes'] / theirs['peak_rss_bytes']:.3f}"
        lines.append(line)
    return lines


def as_markdown(result: dict[str, Any]) -> str:
    """The result as a table, ratios to copying below it."""
    lines = [
        f"# {result['shape']}: prune and export ({result['flavour']}, {result['dtype']}), {result['date']}",
        "",
        f"{result['checkpoint_bytes'] / 1e9:.2f} GB of checkpoint on {result['machine']['cpu']}, "
        f"{result['machine']['cores']} cores; commit {result['commit']}; medians of "
        f"{result['repeats']} rounds, largest peaks.",
        "",
        "| step | seconds | CPU seconds | peak memory, MiB | output, GB | most disk, GB |",
        "|---|---|---|---|---|---|",
    ]
    for name, case in result["cases"].items():
        if "failed" in case:
            lines.append(f"| {name} | failed: {case['failed']} | | | | |")
            continue
        lines.append(
            f"| {name} | {case['seconds_median']:.1f} | {case['cpu_seconds_median']:.1f} | "
            f"{case['peak_rss_bytes'] / 2**20:.0f} | {case['disk_bytes'] / 1e9:.2f} | "
            f"{case['peak_disk_bytes'] / 1e9:.2f} |"
        )
    lines += ["", *ratios(result["cases"])]
    lines += [
        "",
        "| predicted before | seconds | memory, MiB | output, GB | the memory's arithmetic |",
        "|---|---|---|---|---|",
    ]
    for name in ("prune", "export"):
        step = result["predicted"][name]
        lines.append(
            f"| {name} | {step['seconds']} | {step['memory_bytes'] / 2**20:.0f} | {step['disk_bytes'] / 1e9:.2f} | "
            f"{step['memory']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", required=True, help="of random_checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="one of that shape, if it is there already")
    parser.add_argument("--flavour", default="portable")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--optimum-python", type=Path, help="of an environment with optimum-onnx")
    parser.add_argument("--genai-python", type=Path, help="of an environment with onnxruntime-genai")
    parser.add_argument("--engine", choices=("verify", "generate"), help="build one, and have it do this")
    parser.add_argument("--work", type=Path, required=True, help="scratch folder on the disk to be measured")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    options = parser.parse_args()

    found = provenance("prune_export")
    options.work = options.work.resolve()
    checkpoint = (options.checkpoint or options.work / options.shape).resolve()
    plan, log = options.work / "plan.json", options.work / "log.txt"
    make_inputs(options, checkpoint, plan, log)
    predict = [sys.executable, "-m", "benchmarks.large_models.predicted"]
    measure([*predict, str(checkpoint), str(plan), str(options.work), options.dtype], watch=options.work, log=log)
    predicted = json.loads(log.read_text().splitlines()[-1])
    samples: dict[str, list[Any]] = {}
    for _ in range(options.repeats):
        run_round(options, checkpoint, plan, samples)
    result = found | {
        "shape": options.shape,
        "flavour": options.flavour,
        "dtype": options.dtype,
        "repeats": options.repeats,
        "checkpoint_bytes": folder_bytes(checkpoint),
        "cases": {name: summarised(rounds) for name, rounds in samples.items()},
        "predicted": predicted,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{result['date']}_prune_export_{options.shape}_{options.dtype}"
    path.with_name(path.name + ".json").write_text(json.dumps(result, indent=2) + "\n")
    path.with_name(path.name + ".md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
