"""The structure of every family's graph is what `graphs/` says; `make graphs` rewrites it, a diff is reviewed."""

from __future__ import annotations

from itertools import product

import pytest

from hlap_export.export.structure import describe_file
from hlap_export.families import FAMILIES
from tests.export.exports import GOLDEN_FLAVOURS, GOLDEN_PLANS, TinyExports
from tests.export.golden import GRAPHS, golden_file


@pytest.mark.parametrize("flavour", GOLDEN_FLAVOURS)
@pytest.mark.parametrize("plan", GOLDEN_PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_structure_is_the_golden_one(
    family: str, plan: str, flavour: str, tiny_exports: TinyExports
) -> None:
    exported = tiny_exports.get(family, plan, GOLDEN_FLAVOURS[flavour], flavour)
    assert describe_file(exported.model_file) == golden_file(family, plan, flavour).read_text("utf-8")


def test_every_golden_file_belongs_to_a_family_and_a_plan() -> None:
    expected = {golden_file(*names) for names in product(FAMILIES, GOLDEN_PLANS, GOLDEN_FLAVOURS)}
    assert set(GRAPHS.rglob("*.txt")) == expected
