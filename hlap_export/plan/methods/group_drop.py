"""Drop whole KV groups, with their query heads, that add least to the residual stream; layers keep what is left.

The score of a group is how large the layer's attention update is beside the stream, times the group's share of it:

    mean over tokens of  ||update|| / ||h||  *  ||x_g W_O,g|| / ||x W_O||

x_g being what the group's heads give to the output projection. The share is taken before a norm that may follow, whose
scale would otherwise count.

Shapes: N windows, T tokens, D hidden, I inputs of the output projection.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from hlap_export.checkpoint.decoder import LoadedLayer
from hlap_export.plan.layer_halves import both_halves, watching
from hlap_export.plan.layer_plan import KeepHeads, Skip
from hlap_export.plan.methods.base import Removal, with_attention
from hlap_export.plan.workbench import Workbench


class GroupDrop:
    """One KV group after another; a layer that loses its last has no attention any more."""

    def walk(self, bench: Workbench) -> Iterator[Removal]:
        """Ascending by score; layer 0 keeps its groups."""
        per_group, plan = bench.layout.heads_per_group, bench.dense
        kept = {index: list(range(bench.layout.num_kv_heads)) for index in range(1, bench.layout.num_layers)}
        for layer, group in sorted(scores := group_scores(bench), key=lambda found: scores[found]):
            kept[layer].remove(group)
            heads = tuple(group * per_group + head for group in kept[layer] for head in range(per_group))
            plan = with_attention(plan, layer, KeepHeads(query_heads=heads) if heads else Skip())
            yield Removal(what=f"group {layer}.{group}", plan=plan)


def group_scores(bench: Workbench) -> dict[tuple[int, int], float]:
    """The score of each KV group, by layer and group."""
    found = bench.remembered("group scores", lambda: _group_scores(bench))
    return {(int(layer), int(group)): score for layer, group, score in found}


@torch.no_grad()
def _group_scores(bench: Workbench) -> list[tuple[int, int, float]]:
    search, found = bench.search, list[tuple[int, int, float]]()
    for index in range(1, search.decoder.num_layers):
        sums: list[torch.Tensor] = []
        with search.decoder.layer(index) as layer:
            for rows in search.windows.batches():
                h_NTD = search.states.read(index, rows).to(layer.device)
                sums.append(_sums_of_batch(bench, layer, h_NTD))
        scores = torch.stack(sums).sum(0) / search.windows.targets.numel()
        found += [(index, group, score.item()) for group, score in enumerate(scores)]
    return found


def _sums_of_batch(bench: Workbench, layer: LoadedLayer, h_NTD: torch.Tensor) -> torch.Tensor:
    """The scores summed over the batch's tokens, float64, one for each group."""
    output = layer.module.self_attn.o_proj
    with watching(output) as seen:
        between, _ = both_halves(layer, bench.layout.family, h_NTD)
    x_NTI: torch.Tensor = seen.inputs[0]
    w_DI: torch.Tensor = output.weight
    size = _norm(between - h_NTD) / _norm(h_NTD) / _norm(x_NTI @ w_DI.T)
    width = bench.layout.heads_per_group * bench.layout.head_dim
    groups = [slice(start, start + width) for start in range(0, w_DI.shape[1], width)]
    sizes = [size * _norm(x_NTI[..., group] @ w_DI[:, group].T) for group in groups]
    return torch.stack([each.sum(dtype=torch.float64) for each in sizes]).cpu()


def _norm(x_NTD: torch.Tensor) -> torch.Tensor:
    return x_NTD.square().sum(dim=-1).sqrt()
