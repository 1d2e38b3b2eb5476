"""What the rules on inputs and profiles are called, and what to do about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hlap_export.lint.operators import MATRIX
from hlap_export.lint.report import Severity
from hlap_export.lint.rules import ERROR, PUBLISHED, TRIED, WARNING


@dataclass(frozen=True, kw_only=True, slots=True)
class InputRule:
    """One thing that may be wrong with an input, or with its sizes in a profile; attributes as in `NodeRule`."""

    severity: Mapping[str, Severity]
    expected: str
    fix: str
    source: str


SILENT = f"{TRIED}, which says nothing"
DOCUMENTED_PROFILES = "TensorRT 11 documentation, dynamic shapes"

INPUT_RULES: Mapping[str, InputRule] = {
    "opset": InputRule(
        severity=WARNING,
        expected=f"opset {MATRIX.opsets[0]} to {MATRIX.opsets[1]}",
        fix="export with --flavour trt or portable",
        source=PUBLISHED,
    ),
    "dimension-unnamed": InputRule(
        severity=WARNING,
        expected="a name for each dynamic dimension: equal names tell the builder that sizes are equal",
        fix="name it (dim_param), as `hlap-export export` does",
        source="TensorRT 11 documentation, named dimensions",
    ),
    "profile-unknown-input": InputRule(
        severity=ERROR,
        expected="names of the graph's inputs",
        fix="correct the name",
        source=SILENT,
    ),
    "profile-missing-input": InputRule(
        severity=ERROR,
        expected="sizes for every input with dynamic dimensions",
        fix="add the input to the profile",
        source=DOCUMENTED_PROFILES,
    ),
    "profile-rank": InputRule(
        severity=ERROR,
        expected="as many sizes as the input has dimensions",
        fix="write one size for each dimension",
        source=DOCUMENTED_PROFILES,
    ),
    "profile-order": InputRule(
        severity=ERROR,
        expected="least, usual and largest size in this order",
        fix="sort them",
        source=f"{TRIED}: IOptimizationProfile turns false",
    ),
    "profile-static-dimension": InputRule(
        severity=ERROR,
        expected="the size that the graph states",
        fix="write that size three times",
        source=DOCUMENTED_PROFILES,
    ),
    "profile-tied-dimension": InputRule(
        severity=ERROR,
        expected="the same range wherever a dimension has the same name, and the sum of ranges for a sum of names",
        fix="make the ranges equal: inputs at the end of the wider one would be refused at run time",
        source=SILENT,
    ),
}
