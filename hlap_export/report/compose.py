"""Gather what the stages found into one `Summary`."""

from __future__ import annotations

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.report.summary import LayerRow


def layer_rows(layout: ModelLayout, plan: PruningPlan | None) -> tuple[LayerRow, ...]:
    """One row per layer of a checkpoint, dense or pruned; the plan, where known, tells the alphas."""
    alphas = plan.alphas if plan else {}
    return tuple(
        LayerRow(
            layer=layer.index,
            attention=layer.kind,
            num_heads=layer.num_heads,
            num_kv_heads=layer.num_kv_heads,
            alpha=alphas.get(layer.index, 0.0 if layer.kind == "skip" else None),
            is_pruned=layer.kind != "full" or layer.num_heads < layout.num_heads,
        )
        for layer in layout.layers
    )
