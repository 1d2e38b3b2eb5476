"""What the alpha search needs: time above all, and as much memory as it is given.

It computes in float32, layer by layer; layers that don't fit in memory are read from disk each time they are used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from hlap_export.budget.needs import Needs, Term, Work
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.counting import BYTES, Model, embedding, layer_matrices, layer_values
from hlap_export.report.wording import in_bytes

MIB = 2**20
FLOAT_BYTES = 4
LIBRARIES = Term(num_bytes=460 * MIB, why="Python, torch and transformers")

ALPHAS = 11  # candidates for each layer
PLANS_FOR_A_LAYER = 5  # measured to choose one more, and to judge it
TOKENS_AT_ONCE = 1024  # of a batch
USABLE = 0.9  # of the memory that there is, for weights and hidden states
STATES_SHARE = 0.25  # of it for hidden states, where not all layers fit
HEAD_BLOCK_VALUES = 2 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSize:
    """How much is searched on how much text."""

    num_layers: int
    windows: int
    window_length: int

    @classmethod
    def of(cls, layout: ModelLayout, num_layers: int | None, windows: int, window_length: int) -> SearchSize:
        """With the search's own choice of layers where `num_layers` is None: a quarter of them."""
        chosen = num_layers or max(1, layout.num_layers // 4)
        return cls(num_layers=min(chosen, layout.num_layers), windows=windows, window_length=window_length)

    @property
    def tokens(self) -> int:
        """Tokens that are read; the last of each window is only predicted."""
        return self.windows * (self.window_length - 1)


def search_needs(dense: Model, size: SearchSize, *, room_bytes: int | None) -> Needs:
    """The needs of a search with `room_bytes` of memory to use, None where that isn't known.

    The memory is what it takes at least, and of the weights as much as fits beside that.
    """
    layout = dense.layout
    batch = min(size.tokens, max(1, TOKENS_AT_ONCE // (size.window_length - 1)) * (size.window_length - 1))
    layer = max(layer_values(layout, each) for each in layout.layers) * FLOAT_BYTES
    rows = min(size.tokens, layout.vocab_size)
    at_least = (
        LIBRARIES,
        Term(num_bytes=layer, why="one layer in float32"),
        Term(num_bytes=_working_bytes(layout, batch), why=f"{batch} tokens at once, {ALPHAS} alphas"),
        Term(num_bytes=rows * layout.hidden_size * FLOAT_BYTES, why="rows of the embedding"),
    )
    placed = _place(dense, size, batch, room_bytes, least_bytes=sum(term.num_bytes for term in at_least))
    states = size.num_layers * size.tokens * layout.hidden_size * FLOAT_BYTES
    return Needs(
        step="plan",
        memory=(*at_least, Term(num_bytes=placed.resident_bytes, why=placed.in_words)),
        disk=(Term(num_bytes=states, why=f"what enters {size.num_layers} layers, {size.tokens} tokens"),),
        work=(
            Work(kind="multiply", amount=_dense_multiplications(layout, size), why="the dense pass"),
            Work(
                kind="multiply",
                amount=_search_multiplications(layout, size),
                why=f"{ALPHAS} alphas for each of {size.num_layers} layers on {size.tokens} tokens",
            ),
            Work(kind="read", amount=placed.read_bytes, why=f"read {in_bytes(placed.read_bytes)} of weights"),
            Work(kind="wait", amount=5.0, why="start"),
        ),
        advice="take fewer or shorter calibration windows, a machine with more memory, or raise --max-memory",
    )


def walk_needs(dense: Model, size: SearchSize, *, room_bytes: int | None, fit_bytes: int = 0) -> Needs:
    """The needs of a method that measures plans one by one, and searches HARP's alphas to compare with.

    `fit_bytes` is what one fit takes, 0 for a method that fits nothing; weights that stay in memory leave it free.
    """
    room = None if room_bytes is None else room_bytes - fit_bytes
    needs, layout = search_needs(dense, size, room_bytes=room), dense.layout
    fits = (Term(num_bytes=fit_bytes, why="sums and solution of a fit, in float64"),) if fit_bytes else ()
    num_plans = layout.num_layers + PLANS_FOR_A_LAYER * size.num_layers
    values = sum(layer_values(layout, layer) for layer in layout.layers) + embedding(layout).num_values
    once = values * BYTES[dense.dtype]
    stays = sum(work.amount for work in needs.work if work.kind == "read") <= once
    states = 2 * layout.num_layers * size.tokens * layout.hidden_size * FLOAT_BYTES
    return replace(
        needs,
        memory=(*needs.memory, *fits),
        disk=(Term(num_bytes=states, why=f"what enters {layout.num_layers} layers, dense and pruned"),),
        work=(
            *needs.work,
            Work(kind="multiply", amount=num_plans * _dense_multiplications(layout, size), why=f"{num_plans} plans"),
            Work(kind="read", amount=0 if stays else num_plans * once, why=f"read the weights for {num_plans} plans"),
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Placed:
    """What stays in memory, and how much is read in all."""

    resident_bytes: float
    read_bytes: float
    in_words: str


def _place(dense: Model, size: SearchSize, batch: int, room_bytes: int | None, *, least_bytes: float) -> _Placed:
    layout, itemsize = dense.layout, BYTES[dense.dtype]
    layers = [layer_values(layout, layer) for layer in layout.layers]
    head = embedding(layout).num_values
    usable = math.inf if room_bytes is None else USABLE * (room_bytes - LIBRARIES.num_bytes)
    working = least_bytes - LIBRARIES.num_bytes
    if (sum(layers) + head) * FLOAT_BYTES <= usable - working:
        return _Placed(
            resident_bytes=(sum(layers) + head) * FLOAT_BYTES,
            read_bytes=(sum(layers) + head) * itemsize,
            in_words="all weights in float32",
        )
    states = max(0.0, min(STATES_SHARE * usable, usable - working))
    left, num_resident = max(0.0, usable - working - states), 0
    while num_resident < len(layers) and layers[-1 - num_resident] * FLOAT_BYTES <= left:
        left -= layers[-1 - num_resident] * FLOAT_BYTES
        num_resident += 1
    streamed = layers[: len(layers) - num_resident]
    state = batch * layout.hidden_size * FLOAT_BYTES
    num_batches = math.ceil(size.tokens / batch)
    dense_chunks = math.ceil(num_batches / max(1, int(states // state)))
    chunks = math.ceil(num_batches / max(1, int(states // ((ALPHAS + 1) * state))))
    # The search for the d-th layer from the top reads those of the top d that aren't resident, and the head.
    searched = sum(sum(streamed[len(layers) - depth :]) + head for depth in range(1, size.num_layers + 1))
    read = sum(layers[len(streamed) :]) + dense_chunks * (sum(streamed) + head) + chunks * searched
    resident = sum(layers[len(streamed) :]) * FLOAT_BYTES
    states = min(states, (ALPHAS + 1) * state * num_batches)
    return _Placed(
        resident_bytes=resident + states,
        read_bytes=read * itemsize,
        in_words=f"{num_resident} of {len(layers)} layers and hidden states, as many as fit",
    )


def _working_bytes(layout: ModelLayout, batch: int) -> int:
    """Hidden states of a batch for every alpha, a layer's activations, a block of the head with its logits."""
    states = (ALPHAS + 1) * layout.hidden_size
    return (batch * (states + 4 * layout.intermediate_size + 8 * layout.hidden_size) + HEAD_BLOCK_VALUES) * FLOAT_BYTES


def _dense_multiplications(layout: ModelLayout, size: SearchSize) -> float:
    """Each weight once for each token, and each query with every key and value of its window."""
    weights = sum(layer_values(layout, layer) for layer in layout.layers) + embedding(layout).num_values
    scores = 2 * size.window_length * layout.num_heads * layout.head_dim * layout.num_layers
    return float(size.tokens * (weights + scores))


def _search_multiplications(layout: ModelLayout, size: SearchSize) -> float:
    """For the d-th layer from the top: every alpha runs d layers without attention, and the head."""
    by_name = {matrix.name: matrix.num_values for matrix in layer_matrices(layout, layout.layers[0])}
    mlp, value_output = by_name["mlp"], (by_name["q, o"] + by_name["k, v"]) // 2
    head, total = embedding(layout).num_values, 0
    for depth in range(1, size.num_layers + 1):
        total += value_output + ALPHAS * (depth * mlp + (depth - 1) * value_output + head)
    total += 2 * (size.num_layers * (mlp + value_output) + head)  # all ones, all dropped
    return float(size.tokens * total)
