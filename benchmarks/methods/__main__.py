"""Every method of `plan`, at 1 to L/2 parts removed: how much worse is the model, and how much cheaper?

    python -m benchmarks.methods --out benchmarks/results

Plans are fitted and chosen on calibration windows, and judged on two texts that no plan has seen. The first seed takes
windows spread evenly over the calibration text and walks every method; further seeds draw other windows of it, and
walk the methods that fit, and HARP, to n = L/3. The text has about twice as many windows as are drawn, so that seeds
share half of theirs. With --latency the plans of the first seed are pruned, exported, built and timed against the dense
engine, and at n = L/3 the best method's against HARP's; run that on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.methods.latency import FLAVOURS, Engines, timed
from benchmarks.methods.planning import TUNE_EPOCHS, TUNED, planning_cost
from benchmarks.methods.report import at, draw, line, markdown
from benchmarks.provenance import provenance
from hlap_export import reference_model
from hlap_export.bench import BenchOptions
from hlap_export.checkpoint import read_layout
from hlap_export.counting import model_at
from hlap_export.plan.calibration import Windows
from hlap_export.plan.costs import cost_of, planned_layout
from hlap_export.plan.fitting import Fitting
from hlap_export.plan.judging import increase_of, window_losses
from hlap_export.plan.layer_halves import Tensors
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
    "choose-fit by unexplained",
    "suffix-fit, tuned",
    "choose-fit, tuned",
    "attention-drop",
    "block-drop",
)
METHODS_OF_FURTHER_SEEDS = ("harp", "suffix-fit", "choose-fit", "suffix-fit, tuned", "choose-fit, tuned")
NUM_WINDOWS, WINDOW_LENGTH = 64, 256
PLANNED = ("harp", "suffix-fit", "choose-fit", "suffix-fit, tuned")
# Biases of fitted maps cost a hundredth of a percent.
CLOSE = 1.001
# Many points, each for a moment; the two engines that the question is about, for longer.
GLANCE = BenchOptions(rounds=3, repeats=9, min_seconds_per_point=0.3)
DUEL = BenchOptions()


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
        self._dense = {name: self._losses(bench.dense, windows, {}) for name, windows in texts.items()}

    def judge(self, plan: PruningPlan, fitted: Tensors) -> dict[str, Any]:
        """How much worse the plan is on each text, with these fitted weights."""
        found: dict[str, Any] = {}
        for name, windows in self._texts.items():
            increase = increase_of(self._dense[name], self._losses(plan, windows, fitted))
            found[name] = {
                "perplexity": increase.perplexity,
                "gap_nats": increase.gap_nats,
                "gap_nats_low": increase.gap_nats_low,
                "gap_nats_high": increase.gap_nats_high,
            }
        return found

    def _losses(self, plan: PruningPlan, windows: Windows, fitted: Tensors) -> tuple[float, ...]:
        family = self._bench.layout.family
        return window_losses(self._bench.search.decoder, family, plan, fitted, windows)


def named(name: str, bench: Workbench) -> Method:
    """A method by its name here: how `choose-fit` chooses may be part of it, and whether what it fits is tuned."""
    method, _, choose_by = name.removesuffix(TUNED).partition(" by ")
    linear = linear_map(bench.layout, "low_rank", None)
    return method_of(method, linear, choose_by or None)  # type: ignore[arg-type]


def fitted(name: str, bench: Workbench, plan: PruningPlan) -> tuple[PruningPlan, Fitting | None]:
    """A step's plan as the method leaves it, with what was fitted for it; a second call needs no second tuning."""
    if name.endswith(TUNED):
        tuned = bench.tuned(plan, TUNE_EPOCHS)
        return tuned.plan, tuned.fitting
    return plan, bench.fitting(plan) if plan.fits else None


def walk(name: str, bench: Workbench, judge: Judge, most: int, *, dtype: str) -> list[dict[str, Any]]:
    """The points of one method."""
    dense, points = cost_of(bench.layout, dtype), list[dict[str, Any]]()
    steps = named(name, bench).walk(bench)
    for num_removed in range(1, most + 1):
        step = next(steps)
        if name.endswith(TUNED) and num_removed not in (bench.layout.num_layers // 3, most):
            continue  # tuning takes longer than all the rest
        plan, fitting = fitted(name, bench, step.plan)
        cost = cost_of(planned_layout(bench.layout, plan), dtype)
        points.append(
            {
                "num_removed": num_removed,
                "removed": step.what,
                "calibration_perplexity": fitting.perplexity if fitting else bench.perplexity(plan),
                "held_out": judge.judge(plan, fitting.tensors if fitting else {}),
                "kv_ratio": cost.kv_values / dense.kv_values,
                "weight_ratio": cost.weight_bytes / dense.weight_bytes,
                "prefill_ratio": cost.prefill_products / dense.prefill_products,
                "decode_ratio": cost.decode_values / dense.decode_values,
                "plan": step.plan.model_dump(mode="json", include={"attention", "mlp"}),
            }
        )
        print(line(name, points[-1]), flush=True)
    return points


def time_points(engines: Engines, bench: Workbench, name: str, points: list[dict[str, Any]], kept: int) -> None:
    """Put the measured ratios to dense into each point; the engines of the point with `kept` parts removed stay."""
    for point in points:
        step = PruningPlan.model_validate(bench.dense.model_dump() | {"method": name} | point["plan"])
        place = f"{name} {point['num_removed']}"
        point["latency"] = timed(engines.make(place, *fitted(name, bench, step)), engines.dense, GLANCE)
        if point["num_removed"] != kept:
            engines.forget(place)


def duels(engines: Engines, curves: dict[str, list[dict[str, Any]]], num_removed: int) -> dict[str, Any]:
    """The plan of the smallest gap on the first text against HARP's, both with so many parts removed.

    Among those that cost no more than HARP's, prefill and decode, as counted.
    """
    text = next(iter(curves["harp"][0]["held_out"]))
    points = {name: at(curve, num_removed) for name, curve in curves.items() if "latency" in curve[0]}
    costs = ("prefill_ratio", "decode_ratio")
    as_cheap = [name for name in points if all(points[name][cost] <= points["harp"][cost] * CLOSE for cost in costs)]
    best = min(as_cheap, key=lambda name: points[name]["held_out"][text]["gap_nats"])
    rows = {
        flavour: timed(*(engines.built(f"{name} {num_removed}", flavour) for name in (best, "harp")), DUEL)
        for flavour in FLAVOURS
    }
    return {"candidate": best, "baseline": "harp", "num_removed": num_removed, "latency": rows}


def run_seed(arguments: argparse.Namespace, seed: int, work: Path) -> dict[str, Any]:
    """All methods on one choice of calibration windows."""
    model, layout = arguments.model, read_layout(arguments.model)
    is_first = seed == arguments.seeds[0]
    names = (
        dict.fromkeys(("harp", *arguments.only))
        if arguments.only
        else (METHODS if is_first else METHODS_OF_FURTHER_SEEDS)
    )
    third = layout.num_layers // 3
    most = layout.num_layers // 2 if is_first and not arguments.only else third
    calibration = windows_of(model, arguments.text, arguments.windows, seed=seed)
    texts = {path.name: windows_of(model, path, arguments.windows) for path in arguments.held_out}
    engines = Engines(model, work) if is_first and arguments.latency else None
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        with TemporaryDirectory() as searched:  # one for each, so that none profits from what another has measured
            bench = open_workbench(model, (calibration, calibration), work=Path(searched))
            curves[name] = walk(name, bench, Judge(bench, texts), most, dtype=model_at(model).dtype)
            # How layers were chosen doesn't change what they cost.
            if engines is not None and " by " not in name:
                time_points(engines, bench, name, curves[name], third)
    found: dict[str, Any] = {"seed": seed, "curves": curves, "calibration": calibration.text.model_dump()}
    if is_first and not arguments.only:
        found["planning"] = {name: planning_cost(model, name, third) for name in PLANNED}
    if engines is not None:
        found["duel"] = duels(engines, curves, third)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=reference_model.path())
    parser.add_argument("--text", type=Path, default=reference_model.calibration_text())
    parser.add_argument("--held-out", type=Path, nargs="+", default=[reference_model.evaluation_text(), SECOND_TEXT])
    parser.add_argument("--windows", type=int, default=NUM_WINDOWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=METHODS, help="these methods, and HARP, to n = L/3")
    parser.add_argument("--latency", action="store_true", help="also build and time the engine of every plan")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    result = provenance("methods") | {
        "model": "reference model" if arguments.model == reference_model.path() else arguments.model.name,
        "num_layers": read_layout(arguments.model).num_layers,
        "torch_threads": torch.get_num_threads(),
        "windows": arguments.windows,
        "window_length": WINDOW_LENGTH,
        "seeds": [],
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{result['date']}_methods.json"
    for seed in arguments.seeds:
        with TemporaryDirectory() as work:
            result["seeds"].append(run_seed(arguments, seed, Path(work)))
        path.write_text(json.dumps(result, indent=1) + "\n")
    draw(result, path.with_suffix(".svg"))
    path.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
