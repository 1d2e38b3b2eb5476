"""The benchmark's result as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

COLOURS = ("0.45", "tab:orange", "tab:blue", "tab:cyan", "tab:green", "tab:red", "tab:purple")


def table(points: list[dict[str, Any]], names: Any) -> str:
    """One line for each point: gaps in nats per token with their intervals, then what the plan costs."""
    lines: list[str] = []
    for name, point in zip(names or [""] * len(points), points, strict=False):
        gaps = "  ".join(
            f"{text} {found['gap_nats']:+.4f} ({found['gap_nats_low']:.4f} to {found['gap_nats_high']:.4f})"
            for text, found in point["held_out"].items()
        )
        lines.append(
            f"{name:22}{point['num_removed']:2} {point['removed']:13} {gaps}  prefill {point['prefill_ratio']:.3f}"
            f"  decode {point['decode_ratio']:.3f}  kv {point['kv_ratio']:.3f}  {point['seconds']:.0f} s"
        )
    return "\n".join(lines)


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
    top = 2 * max(point["held_out"][text]["gap_nats"] for point in first["choose-fit"])
    axes[0].set_ylim(0, top)
    figure.tight_layout()
    figure.savefig(path)
