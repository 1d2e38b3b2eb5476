"""Models that don't fit here, on paper: sizes, cache, and what each step would need, from their configs alone.

    python -m benchmarks.large_models.paper_models --out benchmarks/results

Nothing is downloaded and no weight is made; the arithmetic stands beside each number. The top quarter of the layers
loses attention. Alphas were released for the 8B alone; 70B and 405B take the same pattern, stretched: three of eight
pruned layers lose V and O too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.large_models.predicted import as_facts
from benchmarks.large_models.prune_export import stretched_alphas
from benchmarks.large_models.random_checkpoint import SHAPES
from benchmarks.provenance import provenance
from hlap_export.budget import (
    Model,
    Needs,
    SearchSize,
    Speeds,
    bench_needs,
    build_needs,
    export_needs,
    prune_needs,
    search_needs,
    verify_needs,
)
from hlap_export.budget.probe import measure_speeds
from hlap_export.checkpoint import layout_of
from hlap_export.counting import kv_bytes_per_token, num_weights, stored_bytes, weights_text
from hlap_export.plan.accounting import count_parameters
from hlap_export.plan.pruning_plan import plan_of_alphas
from hlap_export.prune.config import pruned_config

LONG_CONTEXT = 128 * 1024
STORED, EXPORTED = "bfloat16", "int4"
ROOM_BYTES = 24 * 2**30
GIB = 2**30

_8B = SHAPES["llama-3.1-8b"]
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": _8B,
    "Llama-3.1-70B": _8B
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "Llama-3.1-405B": _8B
    | {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
}

# A round guess at a server, for the order of magnitude: one modern GPU, NVMe disks. Not measured.
SERVER = Speeds(read_bytes=3e9, write_bytes=2e9, hash_bytes=1.5e9, multiplications=20e12, memory_bytes=2e12)


def describe(name: str, config: dict[str, Any], here: Speeds) -> dict[str, Any]:
    """One model: counted sizes, and the needs of every step on this machine and on a server."""
    layout = layout_of(config)
    plan = plan_of_alphas(layout, stretched_alphas(layout.num_layers), method="released pattern")
    pruned_layout = layout_of(pruned_config(config, plan, layout))
    dense, pruned = (Model(layout=each, dtype=STORED) for each in (layout, pruned_layout))
    counted = count_parameters(layout, plan)
    return {
        "model": name,
        "layers": layout.num_layers,
        "pruned_layers": len(plan.alphas),
        "layers_without_values": sum(alpha == 0 for alpha in plan.alphas.values()),
        "dense": _sizes(dense),
        "pruned": _sizes(pruned),
        "linear_weights_removed_ratio": counted.removed_folded_ratio,
        "linear_weights_removed_as_the_paper_counts_ratio": counted.removed_ratio,
        "steps": [
            as_facts(needs, here) | {"step": needs.step, "seconds_on_a_server": round(needs.seconds(SERVER), 1)}
            for needs in _steps(dense, pruned, plan, len(plan.alphas))
        ],
    }


def _sizes(model: Model) -> dict[str, Any]:
    per_token = kv_bytes_per_token(model)
    layout = model.layout
    heads = sum(layer.num_kv_heads for layer in layout.cached_layers)
    return {
        "num_weights": num_weights(layout),
        "num_weights_arithmetic": weights_text(layout),
        "weight_bytes": stored_bytes(model),
        "kv_bytes_per_token": per_token,
        "kv_arithmetic": f"2 × {heads} KV heads in {len(layout.cached_layers)} layers × {layout.head_dim} × 2 bytes",
        "kv_bytes_at_128k": per_token * LONG_CONTEXT,
    }


def _steps(dense: Model, pruned: Model, plan: Any, num_layers: int) -> tuple[Needs, ...]:
    graphs = [Model(layout=model.layout, dtype=EXPORTED) for model in (pruned, dense)]
    size = SearchSize(num_layers=num_layers, windows=64, window_length=256)
    return (
        search_needs(dense, size, room_bytes=ROOM_BYTES),
        prune_needs(dense, plan),
        replace(export_needs(pruned, STORED), step=f"export {STORED}"),
        replace(export_needs(pruned, EXPORTED), step=f"export {EXPORTED}"),
        build_needs(graphs[0]),
        verify_needs(pruned, graphs[0], windows=32, window_length=256, room_bytes=ROOM_BYTES),
        bench_needs(graphs[0], graphs[1], prompt_lengths=(64, 256, 1024), context_lengths=(64, 512, 2048)),
    )


def as_markdown(result: dict[str, Any]) -> str:
    """Two tables, and the arithmetic below them."""
    lines = [f"# On paper: {', '.join(model['model'] for model in result['models'])}, {result['date']}", ""]
    lines += [
        "| | weights | in bfloat16, GiB | KV cache per token, KiB | KV cache at 128k, GiB |",
        "|---|---|---|---|---|",
    ]
    for model in result["models"]:
        for kind in ("dense", "pruned"):
            sizes = model[kind]
            lines.append(
                f"| {model['model']}, {kind} | {sizes['num_weights'] / 1e9:.2f} G | "
                f"{sizes['weight_bytes'] / GIB:.1f} | "
                f"{sizes['kv_bytes_per_token'] / 1024:.0f} | {sizes['kv_bytes_at_128k'] / GIB:.1f} |"
            )
    lines += [
        "",
        f"Needs of each step, predicted; what is built, verified and timed is in {EXPORTED}. `here`: "
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores, speeds measured. `server`: a guess, "
        f"{result['server']}. The search and verify's reference have 24 GiB "
        "to use, and read what doesn't fit from disk again and again.",
        "",
        "| | step | memory, GiB | disk, GiB | here | server |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {model['model']} | {step['step']} | {step['memory_bytes'] / GIB:.1f} | {step['disk_bytes'] / GIB:.1f} | "
        f"{_duration(step['seconds'])} | {_duration(step['seconds_on_a_server'])} |"
        for model in result["models"]
        for step in model["steps"]
    ]
    for model in result["models"]:
        lines += ["", f"## {model['model']}: the arithmetic", ""]
        lines += [f"* {kind} weights: {model[kind]['num_weights_arithmetic']}" for kind in ("dense", "pruned")]
        lines += [f"* {kind} KV cache per token: {model[kind]['kv_arithmetic']}" for kind in ("dense", "pruned")]
        for step in model["steps"]:
            lines.append(f"* {step['step']}: memory {step['memory']}; disk {step['disk']}; here {step['time']}")
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    out: Path = parser.parse_args().out

    out.mkdir(parents=True, exist_ok=True)
    here = measure_speeds(out, multiplies=True)
    result = provenance("paper_models") | {
        "models": [describe(name, config, here) for name, config in CONFIGS.items()],
        "speeds_here": {name: getattr(here, name) for name in Speeds.__slots__},
        "server": "20 T multiply-adds/s in float32, 2 TB/s of memory, disks of 3 GB/s read and 2 GB/s written",
    }
    path = out / f"{result['date']}_paper_models"
    path.with_name(path.name + ".json").write_text(json.dumps(result, indent=2) + "\n")
    path.with_name(path.name + ".md").write_text(as_markdown(result))
    print(as_markdown(result))


if __name__ == "__main__":
    main()
