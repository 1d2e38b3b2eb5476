"""Every method of `plan`, at 1 to L/2 parts removed: how much worse is the model, and how much cheaper?

    python -m benchmarks.methods --out benchmarks/results

Plans are fitted and chosen on calibration windows, and judged on two texts that no plan has seen. The first seed takes
windows spread evenly over the calibration text and walks every method; further seeds draw other windows of it, and
walk the methods that fit, and HARP, to n = L/3. With --latency the plans of n = L/3 are pruned, exported, built and
timed against the dense engine; run that on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.methods.latency import time_plans
from benchmarks.methods.report import draw, table
from benchmarks.provenance import provenance
from hlap_export import reference_model
from hlap_export.checkpoint import read_layout
from hlap_export.counting import model_at
from hlap_export.plan.calibration import Windows
from hlap_export.plan.costs import cost_of, planned_layout
from hlap_export.plan.judging import increase_of, window_losses
from hlap_export.plan.methods import linear_map, method_of
from hlap_export.plan.methods.base import Method
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.records import TextWindows
from hlap_export.plan.searching import open_workbench
from hlap_export.plan.workbench import Workbench
from hlap_export.texts import read_tokens, spread_windows

SECOND_TEXT = Path(__file__).parent.parent / "reference_model" / "second.txt"
METHODS = (
    "harp",
    "suffix-fit",
    "choose-fit",
    "choose-fit by loss",
    "choose-fit by cosine",
    "attention-drop",
    "block-drop",
)
METHODS_OF_FURTHER_SEEDS = ("harp", "suffix-fit", "choose-fit")
NUM_WINDOWS, WINDOW_LENGTH = 64, 256


def windows_of(model: Path, text: Path, num_windows: int, *, seed: int = 0) -> Windows:
    """Windows of a text: spread evenly, or with a seed drawn from it."""
    tokens = read_tokens(model, text, vocab_size=read_layout(model).vocab_size)
    available = tokens.ids.size // WINDOW_LENGTH
    if seed:
        every = spread_windows(tokens, windows=available, window_length=WINDOW_LENGTH)
        drawn = torch.randperm(available, generator=torch.Generator().manual_seed(seed))[:num_windows].sort().values
        ids = torch.tensor(every)[drawn]
    else:
        ids = torch.tensor(spread_windows(tokens, windows=min(num_windows, available), window_length=WINDOW_LENGTH))
    described = TextWindows(name=text.name, sha256=tokens.sha256, num_windows=len(ids), window_length=WINDOW_LENGTH)
    return Windows(ids=ids, text=described)


class Judge:
    """The dense model's losses on the held-out texts, to compare plans with."""

    def __init__(self, bench: Workbench, texts: dict[str, Windows]) -> None:
        self._bench, self._texts = bench, texts
        self._dense = {name: self._losses(bench.dense, windows) for name, windows in texts.items()}

    def judge(self, plan: PruningPlan) -> dict[str, Any]:
        """How much worse the plan is on each text."""
        found: dict[str, Any] = {}
        for name, windows in self._texts.items():
            increase = increase_of(self._dense[name], self._losses(plan, windows))
            found[name] = {
                "perplexity": increase.perplexity,
                "gap_nats": increase.gap_nats,
                "gap_nats_low": increase.gap_nats_low,
                "gap_nats_high": increase.gap_nats_high,
            }
        return found

    def _losses(self, plan: PruningPlan, windows: Windows) -> tuple[float, ...]:
        fitted = self._bench.fitting(plan).tensors if plan.fits else {}
        family = self._bench.layout.family
        return window_losses(self._bench.search.decoder, family, plan, fitted, windows)


def named(name: str, bench: Workbench) -> Method:
    """A method by its name here: how `choose-fit` chooses may be part of it."""
    method, _, choose_by = name.partition(" by ")
    linear = linear_map(bench.layout, "low_rank", None)
    return method_of(method, linear, choose_by or None)  # type: ignore[arg-type]


def walk(name: str, bench: Workbench, judge: Judge, most: int, *, dtype: str) -> list[dict[str, Any]]:
    """The points of one method; `seconds` counts what it took to come there, judging left out."""
    dense, points, seconds = cost_of(bench.layout, dtype), list[dict[str, Any]](), 0.0
    steps = named(name, bench).walk(bench)
    for num_removed in range(1, most + 1):
        started = time.perf_counter()
        step = next(steps)
        perplexity = bench.perplexity(step.plan)
        seconds += time.perf_counter() - started
        cost = cost_of(planned_layout(bench.layout, step.plan), dtype)
        points.append(
            {
                "num_removed": num_removed,
                "removed": step.what,
                "calibration_perplexity": perplexity,
                "held_out": judge.judge(step.plan),
                "kv_ratio": cost.kv_values / dense.kv_values,
                "weight_ratio": cost.weight_bytes / dense.weight_bytes,
                "prefill_ratio": cost.prefill_products / dense.prefill_products,
                "decode_ratio": cost.decode_values / dense.decode_values,
                "seconds": seconds,
                "plan": step.plan.model_dump(mode="json", include={"attention", "mlp"}),
            }
        )
        print(f"  {name}: {table([points[-1]], {})}", flush=True)
    return points


def run_seed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All methods on one choice of calibration windows."""
    model, layout = arguments.model, read_layout(arguments.model)
    names = METHODS if seed == 0 else METHODS_OF_FURTHER_SEEDS
    third = layout.num_layers // 3
    most = layout.num_layers // 2 if seed == 0 else third
    calibration = windows_of(model, arguments.text, arguments.windows, seed=seed)
    texts = {path.name: windows_of(model, path, arguments.windows) for path in arguments.held_out}
    curves: dict[str, list[dict[str, Any]]] = {}
    timed: dict[str, Any] = {}
    for name in names:
        with TemporaryDirectory() as work:  # one for each, so that none profits from what another has measured
            started = time.perf_counter()
            bench = open_workbench(model, (calibration, calibration), work=Path(work))
            opening_seconds = time.perf_counter() - started
            judge = Judge(bench, texts)
            curves[name] = walk(name, bench, judge, most, dtype=model_at(model).dtype)
            for point in curves[name]:
                point["seconds"] += opening_seconds
            if seed == 0 and arguments.latency:
                plan = PruningPlan.model_validate(
                    bench.dense.model_dump() | {"method": name} | curves[name][third - 1]["plan"]
                )
                timed[name] = time_plans(model, bench, plan, Path(work) / "engines")
    return {"seed": seed, "curves": curves, "latency": timed, "calibration": calibration.text.model_dump()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=reference_model.path())
    parser.add_argument("--text", type=Path, default=reference_model.calibration_text())
    parser.add_argument("--held-out", type=Path, nargs="+", default=[reference_model.evaluation_text(), SECOND_TEXT])
    parser.add_argument("--windows", type=int, default=NUM_WINDOWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--latency", action="store_true", help="also build and time engines of n = L/3")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = provenance("methods") | {
        "model": "reference model" if arguments.model == reference_model.path() else arguments.model.name,
        "num_layers": read_layout(arguments.model).num_layers,
        "torch_threads": torch.get_num_threads(),
        "seeds": [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{result['date']}_methods.json"
    for seed in arguments.seeds:
        result["seeds"].append(run_seed(arguments, seed))
        path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, path.with_suffix(".svg"))
    third = result["num_layers"] // 3
    for run in result["seeds"]:
        print(f"seed {run['seed']}")
        print(table([points[third - 1] for points in run["curves"].values()], run["curves"]))


if __name__ == "__main__":
    main()
