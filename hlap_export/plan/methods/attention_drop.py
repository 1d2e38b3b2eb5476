"""Drop the attention of the layers that change the stream least (LLM-Drop, arXiv 2406.15786), nothing in its place."""

from hlap_export.plan.methods.base import Order, Stepwise, drop


def attention_drop(order: Order) -> Stepwise:
    """The method, with this way to choose the layers."""
    return Stepwise(of="attention", remove=drop, order=order)
