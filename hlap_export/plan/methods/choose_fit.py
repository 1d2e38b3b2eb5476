"""Replace attention by fitted linear maps in the layers where that costs least.

What stays above them has its last weights fitted anew, which costs nothing at inference.
"""

from hlap_export.plan.layer_plan import Linear
from hlap_export.plan.methods.base import Order, Stepwise, replace_by
from hlap_export.plan.options import Refit


def choose_fit(linear: Linear, order: Order, refit: Refit) -> Stepwise:
    """The method, with this kind of linear map, this way to choose the layers, and this fitted anew of what stays."""
    return Stepwise(of="attention", remove=replace_by(linear), order=order, refit=refit)
