"""Sizes as people write them: "4GiB", "500MB"."""

from __future__ import annotations

import re

from hlap_export.errors import BudgetError

UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_size(text: str, *, where: str) -> int:
    """`"4GiB"` as 4294967296; binary and decimal units, in any case, with or without a space.

    Raises:
        BudgetError: not a positive number with a unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", text)
    unit = UNITS.get(match.group(2).lower()) if match else None
    size = int(float(match.group(1)) * unit) if match and unit else 0
    if size < 1:
        raise BudgetError(
            where=where,
            expected="a size with its unit, such as 4GiB or 500MB",
            found=repr(text),
            fix=f"write a positive number and one of {', '.join(unit.upper().replace('I', 'i') for unit in UNITS)}",
        )
    return size
