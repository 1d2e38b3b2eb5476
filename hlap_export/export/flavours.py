"""What kinds of graph there are: which passes make each one, and which dtypes it can have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hlap_export.checkpoint import ModelLayout
from hlap_export.errors import ExportError

if TYPE_CHECKING:
    import onnx_ir as ir

BYTES_PER_ELEMENT = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True, slots=True)
class Flavour:
    """What kind of graph is made of the one trace.

    Attributes:
        passes: the declared pass order for a model, looked up late because passes import onnx.
        dtypes: the dtypes that weights and activations may have.
    """

    passes: Callable[[ModelLayout], tuple[ir.passes.PassBase, ...]]
    dtypes: tuple[str, ...]


def _portable(_: ModelLayout) -> tuple[ir.passes.PassBase, ...]:
    from hlap_export.passes import PORTABLE

    return PORTABLE


def _ort(layout: ModelLayout) -> tuple[ir.passes.PassBase, ...]:
    from hlap_export.passes import ort

    return ort(layout.max_positions)


FLAVOURS: Mapping[str, Flavour] = {
    "portable": Flavour(passes=_portable, dtypes=tuple(BYTES_PER_ELEMENT)),
    "ort": Flavour(passes=_ort, dtypes=tuple(BYTES_PER_ELEMENT)),
}


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
        raise ExportError(
            where="--dtype",
            expected=f"for flavour {flavour} one of: {', '.join(FLAVOURS[flavour].dtypes)}",
            found=repr(dtype),
            fix="export with an available dtype",
        )
    return FLAVOURS[flavour]
