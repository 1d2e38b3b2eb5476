"""HARP: the last layers keep their values alone, each rescaled by an alpha searched on perplexity."""

from __future__ import annotations

from collections.abc import Iterator

from hlap_export.plan.harp import search_alphas
from hlap_export.plan.methods.base import Removal
from hlap_export.plan.pruning_plan import plan_of_alphas
from hlap_export.plan.workbench import Workbench


class Harp:
    """The search of `plan/harp.py`, layer by layer."""

    def walk(self, bench: Workbench) -> Iterator[Removal]:
        """From the last layer down; what a layer's alpha is doesn't depend on how far the walk goes on."""
        alphas: dict[int, float] = {}
        for found in search_alphas(bench.search, bench.layout.family, first_layer=1):
            alphas[found.layer] = found.best.alpha
            plan = plan_of_alphas(bench.layout, alphas, method="harp")
            yield Removal(what=f"attention {found.layer}", plan=plan, search=found)
