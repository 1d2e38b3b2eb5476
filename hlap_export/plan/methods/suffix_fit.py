"""Replace the attention of the last layers, from the top down, by fitted linear maps: HARP's layers, at HARP's cost."""

from hlap_export.plan.layer_plan import Linear
from hlap_export.plan.methods.base import Stepwise, replace_by
from hlap_export.plan.methods.orders import last_first
from hlap_export.plan.options import Refit


def suffix_fit(linear: Linear, refit: Refit) -> Stepwise:
    """The method, with this kind of linear map, and this fitted anew of what stays."""
    return Stepwise(of="attention", remove=replace_by(linear), order=last_first, refit=refit)
