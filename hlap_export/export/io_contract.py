"""The I/O contract of an exported decoder: names, dtypes and shapes, from the layout alone."""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.checkpoint import ModelLayout

BATCH, SEQUENCE, PAST = "batch", "sequence", "past_sequence"
TOTAL = f"{PAST} + {SEQUENCE}"
CAPACITY, NUM_LOGITS = "capacity", "num_logits"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One graph input or output; a dimension is a number or a name."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class IOContract:
    """What goes in and what comes out, in order.

    Attributes:
        inputs: what is said of the new tokens, then past key and value of each cached layer.
        outputs: logits, then present key and value of each cached layer.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def io_contract(layout: ModelLayout, dtype: str) -> IOContract:
    """The contract for a decoder whose weights, activations and KV cache are of `dtype`.

    Layers without attention have no entry; `{i}` in a name is the original layer index. Logits are float32
    whatever the dtype: samplers compute in float32, and half-precision outputs have no NumPy type (bfloat16).
    """
    return IOContract(
        inputs=(
            TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, SEQUENCE)),
            TensorSpec(name="attention_mask", dtype="int64", shape=(BATCH, TOTAL)),
            TensorSpec(name="position_ids", dtype="int64", shape=(BATCH, SEQUENCE)),
            *_cache(layout, "past_key_values", dtype, PAST),
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=(BATCH, SEQUENCE, layout.vocab_size)),
            *_cache(layout, "present", dtype, TOTAL),
        ),
    )


def in_place_contract(layout: ModelLayout, dtype: str) -> IOContract:
    """The contract of flavour `trt`, whose caches have a fixed capacity and are written in place.

    A row's tokens are the first ones of its cache, so that it needs neither mask nor positions: `write_indices` says
    how many there are. A row with fewer new tokens than others is padded on the right. `logits_indices` says which of a
    row's new tokens have logits. `present.{i}` is `past_key_values.{i}` with the new tokens; both may be one buffer,
    and in TensorRT they are. `capacity` is one number for all of them, at most the model's positions.
    """
    return IOContract(
        inputs=(
            TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, SEQUENCE)),
            TensorSpec(name="write_indices", dtype="int64", shape=(BATCH,)),
            TensorSpec(name="logits_indices", dtype="int64", shape=(BATCH, NUM_LOGITS)),
            *_cache(layout, "past_key_values", dtype, CAPACITY),
        ),
        outputs=(
            TensorSpec(name="logits", dtype="float32", shape=(BATCH, NUM_LOGITS, layout.vocab_size)),
            *_cache(layout, "present", dtype, CAPACITY),
        ),
    )


def kv_bytes_per_token(layout: ModelLayout, bytes_per_element: int) -> int:
    """Bytes that one token adds to the KV cache, all layers together."""
    return sum(2 * layer.num_kv_heads * layout.head_dim * bytes_per_element for layer in layout.cached_layers)


def _cache(layout: ModelLayout, prefix: str, dtype: str, length: str) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=f"{prefix}.{layer.index}.{part}",
            dtype=dtype,
            shape=(BATCH, layer.num_kv_heads, length, layout.head_dim),
        )
        for layer in layout.cached_layers
        for part in ("key", "value")
    )
