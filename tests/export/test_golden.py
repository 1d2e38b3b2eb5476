"""The structure of every family's graph is what `graphs/` says; `make graphs` rewrites it, a diff is reviewed."""

from __future__ import annotations

import pytest

from hlap_export.export.structure import describe_file
from hlap_export.families import FAMILIES
from tests.export.exports import GOLDEN_PLANS, TinyExports
from tests.export.golden import GRAPHS, golden_file


@pytest.mark.parametrize("plan", GOLDEN_PLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_exported_structure_is_the_golden_one(family: str, plan: str, tiny_exports: TinyExports) -> None:
    assert describe_file(tiny_exports.get(family, plan).model_file) == golden_file(family, plan).read_text("utf-8")


def test_every_golden_file_belongs_to_a_family_and_a_plan() -> None:
    expected = {golden_file(family, plan) for family in FAMILIES for plan in GOLDEN_PLANS}
    assert set(GRAPHS.rglob("*.txt")) == expected
