"""What --dtype and --block-size mean, and which of them go together."""

from __future__ import annotations

import pytest

from hlap_export.errors import ExportError
from hlap_export.export.flavours import require_available
from hlap_export.export.precision import Precision, precision_of


def test_integer_dtypes_are_of_the_weights_alone() -> None:
    assert precision_of("int4") == Precision(activations="float32", weight_bits=4, block_size=32)
    assert precision_of("int8", 128) == Precision(activations="float32", weight_bits=8, block_size=128)
    assert precision_of("float16") == Precision(activations="float16")


@pytest.mark.parametrize("block_size", [0, 8, 24, 512, -32])
def test_a_block_size_that_no_kernel_takes_is_refused_with_those_that_they_do(block_size: int) -> None:
    with pytest.raises(ExportError, match="16, 32, 64, 128, 256"):
        precision_of("int4", block_size)


def test_a_block_size_for_weights_that_are_not_in_blocks_is_refused() -> None:
    with pytest.raises(ExportError, match="int8, int4"):
        precision_of("float32", 32)


def test_quantised_weights_need_a_flavour_with_operators_for_them() -> None:
    require_available("ort", "int4", 64)
    with pytest.raises(ExportError, match=r"for flavour portable .* take --flavour ort"):
        require_available("portable", "int4", None)
