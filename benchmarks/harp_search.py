"""How much faster is the alpha search than the naive one, which runs the whole pruned model for every candidate?

    python -m benchmarks.harp_search --out benchmarks/results/

Both run interleaved in one process on the same calibration windows, and must return the same plan. The fast one also
opens the model, and keeps what it has finished on disk; the naive one has it loaded. The naive search
is what one writes first: swap the candidate's attention modules (already folded, no attention between tokens) into
the model, run it over all windows, take the perplexity.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.provenance import provenance
from hlap_export import reference_model
from hlap_export.checkpoint import load_model, read_layout
from hlap_export.checkpoint.modeling_hlap import AttentionFreeLayer, ValueOnlyAttention
from hlap_export.fold import layer_edits
from hlap_export.plan.calibration import Windows, batches_of
from hlap_export.plan.harp import ALPHA_GRID, default_num_layers, search_harp
from hlap_export.plan.pruning_plan import TextWindows, plan_of_alphas
from hlap_export.texts import read_tokens, spread_windows


@torch.no_grad()
def naive_alphas(model: Any, layout: Any, windows: torch.Tensor, num_layers: int) -> dict[int, float]:
    """Greedy search from the last layer down, one whole forward pass over the windows per candidate."""
    dense_layers = list(model.model.layers)
    state = model.state_dict()
    alphas: dict[int, float] = {}
    for layer in reversed(range(layout.num_layers - num_layers, layout.num_layers)):
        scores: list[float] = []
        for alpha in ALPHA_GRID:
            candidate = alphas | {layer: alpha}
            _swap_in(model, layout, state, candidate)
            scores.append(sum(_loss_nats(model, windows[rows]) for rows in batches_of(*windows.shape)))
            for index in candidate:
                model.model.layers[index] = dense_layers[index]
                model.model.layers[index].self_attn = model.model.layers[index].dense_attention
        alphas[layer] = ALPHA_GRID[scores.index(min(scores))]
    return alphas


def _loss_nats(model: Any, windows: torch.Tensor) -> float:
    logits = model(input_ids=windows[:, :-1]).logits
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="sum")
    return float(losses)


def _swap_in(model: Any, layout: Any, state: dict[str, torch.Tensor], alphas: dict[int, float]) -> None:
    """Replace the attention of the layers in `alphas` by its folded value-only form, or by nothing."""
    edits = layer_edits(plan_of_alphas(layout, alphas, method="naive"), layout)
    for index, alpha in alphas.items():
        layer = model.model.layers[index]
        layer.__dict__["dense_attention"] = layer.self_attn
        if alpha == 0:
            model.model.layers[index] = AttentionFreeLayer(layer)
            continue
        attention = ValueOnlyAttention(model.config, layout.head_dim)
        prefix = f"model.layers.{index}.self_attn."
        attention.v_proj.weight.data = state[f"{prefix}v_proj.weight"]
        attention.o_proj.weight.data = edits[index].edits[f"{prefix}o_proj.weight"](state.__getitem__).float()
        layer.self_attn = attention


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=reference_model.path(), help="a Llama-like model without biases")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--window-length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    found = provenance("harp_search")
    layout = read_layout(arguments.model)
    num_layers = default_num_layers(layout)
    model = load_model(arguments.model, dtype=torch.float32)
    model.config.value_only_output_bias = False
    text = read_tokens(arguments.model, reference_model.calibration_text(), vocab_size=layout.vocab_size)
    ids = torch.tensor(spread_windows(text, windows=arguments.windows, window_length=arguments.window_length))
    described = TextWindows(
        name=text.path.name,
        sha256=text.sha256,
        num_windows=arguments.windows,
        window_length=arguments.window_length,
    )

    seconds: dict[str, list[float]] = {"fast": [], "naive": []}
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        with TemporaryDirectory() as work:
            plan = search_harp(
                arguments.model, Windows(ids=ids, text=described), num_layers=num_layers, work=Path(work)
            )
        seconds["fast"].append(time.perf_counter() - started)
        started = time.perf_counter()
        naive = naive_alphas(model, layout, ids, num_layers)
        seconds["naive"].append(time.perf_counter() - started)
        if plan.alphas != naive:
            raise SystemExit(f"the searches disagree: fast {plan.alphas}, naive {naive}")

    ratios = [slow / fast for slow, fast in zip(seconds["naive"], seconds["fast"], strict=True)]
    result = found | {
        "model": "reference model" if arguments.model == reference_model.path() else arguments.model.name,
        "num_layers": num_layers,
        "alphas": plan.alphas,
        "text": described.model_dump(),
        "fast_seconds": seconds["fast"],
        "naive_seconds": seconds["naive"],
        "speedup_median": statistics.median(ratios),
        "speedup_range": [min(ratios), max(ratios)],
        "torch_threads": torch.get_num_threads(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"{found['date']}_harp_search_{arguments.window_length}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"naive / fast: {result['speedup_median']:.1f}x ({min(ratios):.1f} to {max(ratios):.1f}); written to {path}")


if __name__ == "__main__":
    main()
