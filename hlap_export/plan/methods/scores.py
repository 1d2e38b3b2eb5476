"""Scores of the dense model's parts, from what enters and leaves them on the calibration windows.

Shapes: N windows, T tokens, D hidden.
"""

from __future__ import annotations

import math

import torch

from hlap_export.plan.layer_halves import both_halves
from hlap_export.plan.workbench import Workbench


def similarities(bench: Workbench) -> dict[str, float]:
    """Cosine between the residual stream before and after each part ("attention 3"), the mean over all tokens.

    Layer 0's parts are not among them: they stay.
    """
    return bench.remembered("similarities", lambda: _similarities(bench))


@torch.no_grad()
def _similarities(bench: Workbench) -> dict[str, float]:
    search, found = bench.search, dict[str, float]()
    batches = list(search.windows.batches())
    for index in range(1, search.decoder.num_layers):
        sums: dict[str, list[float]] = {"attention": [], "mlp": [], "block": []}
        with search.decoder.layer(index) as layer:
            for rows in batches:
                h_NTD = search.states.read(index, rows).to(layer.device)
                mid_NTD, out_NTD = both_halves(layer, bench.layout.family, h_NTD)
                for name, pair in (
                    ("attention", (h_NTD, mid_NTD)),
                    ("mlp", (mid_NTD, out_NTD)),
                    ("block", (h_NTD, out_NTD)),
                ):
                    sums[name].append(_cosines(*pair))
        found |= {
            f"{name} {index}": math.fsum(values) / search.windows.targets.numel() for name, values in sums.items()
        }
    return found


def _cosines(a_NTD: torch.Tensor, b_NTD: torch.Tensor) -> float:
    """Sum of the tokens' cosines."""
    return torch.nn.functional.cosine_similarity(a_NTD, b_NTD, dim=-1).sum(dtype=torch.float64).item()
