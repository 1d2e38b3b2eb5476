"""Drop whole layers, attention and MLP, that change the stream least (ShortGPT, arXiv 2403.03853)."""

from hlap_export.plan.methods.base import Stepwise, drop
from hlap_export.plan.methods.orders import by_cosine

BLOCK_DROP = Stepwise(of="block", remove=drop, order=by_cosine)
