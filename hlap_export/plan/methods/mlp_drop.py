"""Drop the MLPs of the layers that change the stream least (LLM-Drop, arXiv 2406.15786), nothing in their place."""

from hlap_export.plan.methods.base import Order, Stepwise, drop


def mlp_drop(order: Order) -> Stepwise:
    """The method, with this way to choose the layers."""
    return Stepwise(of="mlp", remove=drop, order=order)
