"""What `--dtype` and `--block-size` ask for: how a model computes, and how its matrices are stored."""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.errors import ExportError

BYTES_PER_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2}
BITS_PER_WEIGHT = {"int8": 8, "int4": 4}
DTYPES = (*BYTES_PER_ELEMENT, *BITS_PER_WEIGHT)

BLOCK_SIZES = (16, 32, 64, 128, 256)
"""What ONNX Runtime's kernels take."""

DEFAULT_BLOCK_SIZE = 32
"""In 4 bits the reference model loses 0.044, 0.058, 0.063 and 0.077 nats per token in blocks of 16, 32, 64 and 128; a
weight takes 6, 5, 4.5 and 4.25 bits."""

EMBEDDING_BITS = 8
"""Of an embedding that isn't the head's too, for int4 as well: its rows are looked up, so that bits cost no time, and
4 of them would cost the reference model 0.0016 nats per token instead of 0.0002."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Types of a model's numbers.

    Attributes:
        activations: dtype of activations, of the KV cache, and of weights that aren't quantised.
        weight_bits: of the matrices of linear layers; None where they are of the activations' dtype.
        block_size: weights that share a scale; None likewise.
    """

    activations: str
    weight_bits: int | None = None
    block_size: int | None = None


def precision_of(dtype: str, block_size: int | None = None) -> Precision:
    """What `dtype` means; quantised models compute in float32, the only type that is fast on every CPU.

    Args:
        dtype: one of `DTYPES`.
        block_size: for int8 and int4 alone; None takes `DEFAULT_BLOCK_SIZE`.

    Raises:
        ExportError: a block size that no kernel takes, or one for weights that aren't quantised.
    """
    bits = BITS_PER_WEIGHT.get(dtype)
    if bits is None:
        if block_size is not None:
            raise ExportError(
                where="--block-size",
                expected=f"a dtype whose weights are stored in blocks: {', '.join(BITS_PER_WEIGHT)}",
                found=f"--dtype {dtype}",
                fix="leave --block-size out, or take one of these dtypes",
            )
        return Precision(activations=dtype)
    block_size = DEFAULT_BLOCK_SIZE if block_size is None else block_size
    if block_size not in BLOCK_SIZES:
        raise ExportError(
            where="--block-size",
            expected=f"one of: {', '.join(map(str, BLOCK_SIZES))}",
            found=str(block_size),
            fix=f"take {DEFAULT_BLOCK_SIZE}; larger blocks are smaller and faster, and less accurate",
        )
    return Precision(activations="float32", weight_bits=bits, block_size=block_size)
