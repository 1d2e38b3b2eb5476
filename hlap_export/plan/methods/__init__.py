"""Ways to prune, one file each: what goes next, and what takes its place."""

from __future__ import annotations

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.plan.layer_plan import Linear, LinearForm, linear_of
from hlap_export.plan.methods.attention_drop import attention_drop
from hlap_export.plan.methods.base import Method, Order, Removal
from hlap_export.plan.methods.block_drop import block_drop
from hlap_export.plan.methods.choose_fit import choose_fit
from hlap_export.plan.methods.group_drop import GroupDrop
from hlap_export.plan.methods.harp import Harp
from hlap_export.plan.methods.mlp_drop import mlp_drop
from hlap_export.plan.methods.orders import ORDERS
from hlap_export.plan.methods.suffix_fit import suffix_fit
from hlap_export.plan.options import ChooseBy, MethodName, Refit

__all__ = ["Method", "Removal", "linear_map", "method_of"]


def linear_map(layout: ModelLayout, form: LinearForm, rank: int | None) -> Linear:
    """The fitted map in a model of this layout; a low-rank one that a full matrix undercuts is a full matrix.

    A rank that isn't given is HARP's: as many as the layer has values (KV heads times head_dim), at HARP's cost.
    """
    rank = rank or layout.num_kv_heads * layout.head_dim
    if form == "low_rank" and 2 * rank < layout.hidden_size:
        return linear_of("low_rank", layout, rank)
    return linear_of("full" if form == "low_rank" else form, layout)


def method_of(
    name: MethodName, linear: Linear, choose_by: ChooseBy | None = None, refit: Refit = "attention"
) -> Method:
    """The method of this name.

    Args:
        name: not "fixed", which searches nothing.
        linear: what `suffix-fit` and `choose-fit` put in the place of attention.
        choose_by: how `choose-fit` and those that drop choose; None for each one's own way. The others have one alone.
        refit: what `suffix-fit` and `choose-fit` fit anew of what stays.

    Raises:
        PlanError: it can't choose so.
    """
    match name:
        case "suffix-fit":
            return suffix_fit(linear, refit)
        case "choose-fit":
            return choose_fit(linear, ORDERS[choose_by or "greedy"], refit)
        case "attention-drop":
            return attention_drop(_order_of_drops(name, choose_by))
        case "mlp-drop":
            return mlp_drop(_order_of_drops(name, choose_by))
        case "block-drop":
            return block_drop(_order_of_drops(name, choose_by))
        case "group-drop":
            return GroupDrop()
        case _:
            return Harp()


def _order_of_drops(name: MethodName, choose_by: ChooseBy | None) -> Order:
    if choose_by == "unexplained":
        raise PlanError(
            where=f"method {name}, choose_by",
            expected="cosine, loss or greedy: a share that a linear map leaves unexplained takes a map",
            found=choose_by,
            fix="choose another way, or take method choose-fit",
        )
    return ORDERS[choose_by or "cosine"]
