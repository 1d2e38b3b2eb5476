"""The benchmark's result as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

COLOURS = (
    "0.45",
    *(f"tab:{name}" for name in ["orange", "blue", "cyan", "green", "red", "purple", "brown", "pink", "olive"]),
)


Point = dict[str, Any]


def line(name: str, point: Point) -> str:
    """One point while the benchmark runs: gaps in nats per token with their intervals, then what the plan costs."""
    gaps = "  ".join(f"{text} {_gap(found)}" for text, found in point["held_out"].items())
    return (
        f"{name} {point['num_removed']} ({point['removed']}): {gaps}  prefill {point['prefill_ratio']:.3f}  "
        f"decode {point['decode_ratio']:.3f}  kv {point['kv_ratio']:.3f}"
    )


def markdown(result: dict[str, Any]) -> str:
    """The result for a reader: the question at L/3 parts removed first, then every point."""
    third, machine = result["num_layers"] // 3, result["machine"]
    first = result["seeds"][0]
    texts = list(first["curves"]["harp"][0]["held_out"])
    lines = [
        f"# Methods on the {result['model']}, {result['date']}",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {result['torch_threads']} PyTorch threads; commit "
        f"{result['commit']}; {result['windows']} calibration windows of {result['window_length']} tokens. A gap is "
        "nats per token above the dense model, with the 95 % interval over windows; ratios are to the dense model.",
        "",
        f"## {third} parts removed",
        "",
        f"| seed | method | {' | '.join(f'gap, {text}' for text in texts)} | of HARP's |",
        "|---|---|" + "---|" * (len(texts) + 1),
    ]
    for run in result["seeds"]:
        harp = at(run["curves"]["harp"], third)["held_out"]
        for name, points in run["curves"].items():
            gaps = at(points, third)["held_out"]
            shares = ", ".join(f"{gaps[text]['gap_nats'] / harp[text]['gap_nats']:.2f}" for text in texts)
            lines.append(f"| {run['seed']} | {name} | {' | '.join(_gap(gaps[text]) for text in texts)} | {shares} |")
    lines += [*_duel(first["duel"])] if "duel" in first else []
    return "\n".join([*lines, *_planning(first, third), *_curves(first["curves"], texts)]) + "\n"


def _planning(first: dict[str, Any], third: int) -> list[str]:
    if "planning" not in first:
        return []
    lines = ["", "## Planning", "", f"`plan --num-layers {third}`, HARP's curve beside the method's own included.", ""]
    lines += ["| method | seconds | CPU seconds | peak memory, MiB |", "|---|---|---|---|"]
    return lines + [
        f"| {name} | {cost['seconds']:.0f} | {cost['cpu_seconds']:.0f} | {cost['peak_rss_bytes'] / 2**20:.0f} |"
        for name, cost in first["planning"].items()
    ]


def at(points: list[Point], num_removed: int) -> Point:
    """The point with so many parts removed."""
    return next(point for point in points if point["num_removed"] == num_removed)


def _duel(duel: dict[str, Any]) -> list[str]:
    lines = ["", f"Engines timed in turn, {duel['candidate']} / {duel['baseline']}:", ""]
    lines += ["| flavour | step | ratio |", "|---|---|---|"]
    return lines + [
        f"| {flavour} | {row['phase']} {row['num_tokens']} | {_ratio(row)} |"
        for flavour, rows in duel["latency"].items()
        for row in rows
    ]


def _curves(curves: dict[str, list[Point]], texts: list[str]) -> list[str]:
    timed = [f"{row['phase']} {row['num_tokens']}" for row in next(iter(curves.values()))[0].get("latency", ())]
    columns = ["method", "n", "removed", *(f"gap, {text}" for text in texts), "prefill", "decode", "KV", "weights"]
    lines = [
        "",
        "## Every point, seed 0",
        "",
        "Prefill and decode are counted; what is named by tokens is measured.",
        "",
    ]
    lines += ["| " + " | ".join([*columns, *timed]) + " |", "|" + "---|" * (len(columns) + len(timed))]
    for name, points in curves.items():
        for point in points:
            cells = [name, str(point["num_removed"]), point["removed"]]
            cells += [_gap(point["held_out"][text]) for text in texts]
            cells += [f"{point[f'{what}_ratio']:.3f}" for what in ("prefill", "decode", "kv", "weight")]
            cells += [_ratio(row) for row in point["latency"]] if "latency" in point else [""] * len(timed)
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def _gap(found: dict[str, float]) -> str:
    return f"{found['gap_nats']:+.3f} ({found['gap_nats_low']:.3f} to {found['gap_nats_high']:.3f})"


def _ratio(row: dict[str, Any]) -> str:
    noisy = " noisy" if row["noise"] else ""
    return f"{row['ratio']:.3f} ({row['ratio_low']:.3f} to {row['ratio_high']:.3f}){noisy}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Gap against parts removed, and against the counted latency of a prefill and of a decode step."""
    first = result["seeds"][0]["curves"]
    text = next(iter(next(iter(first.values()))[0]["held_out"]))
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True)
    labels = ("num_removed", "prefill_ratio", "decode_ratio")
    for axis, key in zip(axes, labels, strict=True):
        for (name, points), colour in zip(first.items(), COLOURS, strict=False):
            gaps = [point["held_out"][text] for point in points]
            at = [point[key] for point in points]
            axis.plot(at, [gap["gap_nats"] for gap in gaps], marker=".", color=colour, label=name)
            low, high = ([gap[f"gap_nats_{end}"] for gap in gaps] for end in ("low", "high"))
            axis.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axis.spines[["top", "right"]].set_visible(False)
    for axis, label in zip(axes, ("parts removed", "prefill, counted, of the dense", "decode, counted"), strict=True):
        axis.set(xlabel=label)
    axes[0].set(ylabel=f"nats per token above dense ({text})")
    axes[0].legend(frameon=False, fontsize=8)
    top = 2 * max(point["held_out"][text]["gap_nats"] for point in first.get("choose-fit", first["harp"]))
    axes[0].set_ylim(0, top)
    figure.tight_layout()
    figure.savefig(path)
