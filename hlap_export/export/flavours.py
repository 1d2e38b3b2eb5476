"""What kinds of graph there are: which passes make each one, and which dtypes it can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hlap_export.checkpoint import ModelLayout
from hlap_export.errors import ExportError
from hlap_export.export.precision import BYTES_PER_ELEMENT, DTYPES, EMBEDDING_BITS, Precision, precision_of

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavour:
    """What kind of graph is made of the one trace.

    Attributes:
        passes: the declared pass order for a model in a precision, looked up late because passes import onnx.
        dtypes: what `--dtype` may be.
    """

    passes: Callable[[ModelLayout, Precision], tuple[ir.passes.PassBase, ...]]
    dtypes: tuple[str, ...]


def _portable(_: ModelLayout, __: Precision) -> tuple[ir.passes.PassBase, ...]:
    from hlap_export.passes import PORTABLE

    return PORTABLE


def _ort(layout: ModelLayout, precision: Precision) -> tuple[ir.passes.PassBase, ...]:
    from hlap_export.passes import Blockwise, QuantiseWeights, ort

    if precision.weight_bits is None or precision.block_size is None:
        return ort(layout.max_positions)
    linear, embedding = (
        Blockwise(bits=bits, block_size=precision.block_size) for bits in (precision.weight_bits, EMBEDDING_BITS)
    )
    return ort(layout.max_positions, quantise=QuantiseWeights(linear, embedding))


def _trt(layout: ModelLayout, _: Precision) -> tuple[ir.passes.PassBase, ...]:
    from hlap_export.passes import trt

    return trt(layout.max_positions)


FLAVOURS: Mapping[str, Flavour] = {
    "portable": Flavour(passes=_portable, dtypes=tuple(BYTES_PER_ELEMENT)),
    "ort": Flavour(passes=_ort, dtypes=DTYPES),
    "trt": Flavour(passes=_trt, dtypes=tuple(BYTES_PER_ELEMENT)),
}


def require_available(flavour: str, dtype: str, block_size: int | None) -> None:
    """Do nothing if `export` takes this; for who would rather know at once.

    Raises:
        ExportError: a flavour, dtype or block size that isn't available.
    """
    flavour_of(flavour, dtype)
    precision_of(dtype, block_size)


def flavour_of(flavour: str, dtype: str) -> Flavour:
    """The flavour of that name, if it can hold that dtype.

    Raises:
        ExportError: a flavour or dtype that isn't available.
    """
    if flavour not in FLAVOURS:
        raise ExportError(
            where="--flavour",
            expected=f"one of: {', '.join(FLAVOURS)}",
            found=repr(flavour),
            fix="export with an available flavour; portable runs on every ONNX engine",
        )
    if dtype not in FLAVOURS[flavour].dtypes:
        others = [name for name, other in FLAVOURS.items() if dtype in other.dtypes]
        raise ExportError(
            where="--dtype",
            expected=f"for flavour {flavour} one of: {', '.join(FLAVOURS[flavour].dtypes)}",
            found=repr(dtype),
            fix=f"take --flavour {others[0]}" if others else "export with an available dtype",
        )
    return FLAVOURS[flavour]
