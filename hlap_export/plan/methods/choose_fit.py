"""Replace attention by fitted linear maps in the layers where that costs least.

The attention that stays above them has its output projection fitted anew, which costs nothing at inference.
"""

from hlap_export.plan.layer_plan import Linear
from hlap_export.plan.methods.base import Order, Stepwise, replace_by


def choose_fit(linear: Linear, order: Order) -> Stepwise:
    """The method, with this kind of linear map and this way to choose the layers."""
    return Stepwise(of="attention", remove=replace_by(linear), order=order)
