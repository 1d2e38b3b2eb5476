"""Drop the attention of the layers that change the stream least (LLM-Drop, arXiv 2406.15786), nothing in its place."""

from hlap_export.plan.methods.base import Stepwise, drop
from hlap_export.plan.methods.orders import by_cosine

ATTENTION_DROP = Stepwise(of="attention", remove=drop, order=by_cosine)
