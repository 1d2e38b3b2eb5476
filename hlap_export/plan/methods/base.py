"""What a method is: it takes parts out of a model one after another, and says after each what is left.

A method is an order of parts and what becomes of each. Everything that costs (texts, streams, fits, losses, results
kept for a killed search) is the workbench's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.plan.layer_plan import AttentionPlan, Linear, Skip, SkipMlp
from hlap_export.plan.options import Refit
from hlap_export.plan.pruning_plan import PruningPlan, refit_kept
from hlap_export.plan.records import LayerSearch
from hlap_export.plan.workbench import Workbench


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What can be taken out at once: one layer's attention, its MLP, or both."""

    layer: int
    of: Literal["attention", "mlp", "block"]

    def __str__(self) -> str:
        return f"{self.of} {self.layer}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """One step of a walk.

    Attributes:
        what: went in this step, such as "attention 9".
        plan: everything that has gone so far, not fitted yet.
        search: the perplexities that decided this step's alpha, where it has one.
    """

    what: str
    plan: PruningPlan
    search: LayerSearch | None = None


class Method(Protocol):
    """A way to prune: steps that remove more and more, lazily, for the walk may stop at any of them."""

    def walk(self, bench: Workbench) -> Iterator[Removal]:
        """The steps, from the dense model on, which itself isn't one."""
        ...


Remove = Callable[[PruningPlan, Part], PruningPlan]
Order = Callable[[Workbench, Sequence[Part], Remove], Iterator[Part]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stepwise:
    """A method that takes parts of one kind in some order.

    Attributes:
        of: what a part is.
        remove: what the plan becomes without a part.
        order: which part is next.
        refit: what is fitted anew of what stays, where maps are fitted.
    """

    of: Literal["attention", "mlp", "block"]
    remove: Remove
    order: Order
    refit: Refit = "none"

    def walk(self, bench: Workbench) -> Iterator[Removal]:
        """One part after another, as long as there are any."""
        plan = bench.dense
        for part in self.order(bench, parts(bench.layout, self.of), self.remove):
            plan = self.remove(plan, part)
            yield Removal(what=str(part), plan=refit_kept(plan, self.refit) if plan.fits else plan)


def parts(layout: ModelLayout, of: Literal["attention", "mlp", "block"]) -> tuple[Part, ...]:
    """The parts of a model that may go: layer 0 keeps its attention, and its MLP, which turns tokens into features."""
    return tuple(Part(layer=index, of=of) for index in range(1, layout.num_layers))


def with_attention(plan: PruningPlan, layer: int, attention: AttentionPlan) -> PruningPlan:
    """The plan with this in the place of one layer's attention."""
    changed = (*plan.attention[:layer], attention, *plan.attention[layer + 1 :])
    return plan.model_copy(update={"attention": changed})


def replace_by(linear: Linear) -> Remove:
    """Put a linear map, yet to be fitted, in the place of a layer's attention."""
    return lambda plan, part: with_attention(plan, part.layer, linear)


def drop(plan: PruningPlan, part: Part) -> PruningPlan:
    """The plan without the part, and nothing in its place."""
    if part.of != "mlp":
        plan = with_attention(plan, part.layer, Skip())
    if part.of != "attention":
        plan = plan.model_copy(update={"mlp": dict(sorted({**plan.mlp, part.layer: SkipMlp()}.items()))})
    return plan
