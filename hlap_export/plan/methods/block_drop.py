"""Drop whole layers, attention and MLP, that change the stream least (ShortGPT, arXiv 2403.03853)."""

from hlap_export.plan.methods.base import Order, Stepwise, drop


def block_drop(order: Order) -> Stepwise:
    """The method, with this way to choose the layers."""
    return Stepwise(of="block", remove=drop, order=order)
