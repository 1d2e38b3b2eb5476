"""Which part goes next: by place, by a score of the dense model, or by what the loss becomes without it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from hlap_export.plan.layer_plan import Linear, LinearForm
from hlap_export.plan.methods.base import Order, Part, Remove
from hlap_export.plan.methods.scores import similarities
from hlap_export.plan.workbench import Workbench


def last_first(bench: Workbench, parts: Sequence[Part], remove: Remove) -> Iterator[Part]:
    """From the last layer down, as HARP does."""
    return iter(sorted(parts, key=lambda part: -part.layer))


def by_cosine(bench: Workbench, parts: Sequence[Part], remove: Remove) -> Iterator[Part]:
    """First what turns the residual stream least: the highest cosine between what enters the part and what leaves it.

    For attention that is LLM-Drop's order (arXiv 2406.15786), for blocks ShortGPT's (arXiv 2403.03853).
    """
    similarity = similarities(bench)
    return _ascending({part: -similarity[str(part)] for part in parts})


def by_loss(bench: Workbench, parts: Sequence[Part], remove: Remove) -> Iterator[Part]:
    """First what costs least where it alone is removed."""
    return _ascending({part: bench.loss(remove(bench.dense, part)) for part in parts})


def by_unexplained(bench: Workbench, parts: Sequence[Part], remove: Remove) -> Iterator[Part]:
    """First the attention that a linear map explains best: the smallest unexplained share of its output's variance."""
    maps = {part.layer: remove(bench.dense, part).attention[part.layer] for part in parts}
    forms: list[LinearForm] = [linear.form for linear in maps.values() if isinstance(linear, Linear)]
    shares = bench.unexplained(list(maps), forms[0])
    return _ascending({part: shares[part.layer] for part in parts})


def greedily(bench: Workbench, parts: Sequence[Part], remove: Remove) -> Iterator[Part]:
    """First what costs least beside all that has gone before, everything that is fitted fitted anew each time.

    A part costs more the more others are gone, as a rule. So an old measurement is a lower bound, and only the part
    that looks cheapest is measured again, until the cheapest is one that has just been measured (Minoux, "Accelerated
    greedy algorithms", 1978).
    """
    plan, cost = bench.dense, dict.fromkeys(parts, -math.inf)
    while cost:
        measured: set[Part] = set()
        while (best := min(cost, key=lambda part: cost[part])) not in measured:
            cost[best] = bench.loss(remove(plan, best)) - bench.loss(plan)
            measured.add(best)
        del cost[best]
        plan = remove(plan, best)
        yield best


def _ascending(scores: Mapping[Part, float]) -> Iterator[Part]:
    return iter(sorted(scores, key=lambda part: scores[part]))


ORDERS: dict[str, Order] = {
    "suffix": last_first,
    "cosine": by_cosine,
    "unexplained": by_unexplained,
    "loss": by_loss,
    "greedy": greedily,
}
