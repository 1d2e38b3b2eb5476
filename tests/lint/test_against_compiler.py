"""The rules against the real compiler: what they call an error is refused by it, and what they pass is built.

TensorRT-RTX parses and builds on a CPU; without it these tests are skipped.
"""

from __future__ import annotations

from typing import Any

import onnx
import pytest

from tests.lint.hazards import HAZARDS, Hazard
from tests.lint.test_rules import RIGHT, planted

trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx isn't installed: pip install '.[rtx]'")


class Silent(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: object, message: str) -> None:
        pass


def builds(model: onnx.ModelProto) -> bool:
    """Whether the compiler makes an engine of the model; unnamed sizes are taken as 4."""
    logger = Silent()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return False
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        sizes = [dim.dim_value or 64 for dim in value.type.tensor_type.shape.dim]
        if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim):
            profile.set_shape(value.name, sizes, sizes, sizes)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    return builder.build_serialized_network(network, config) is not None


@pytest.mark.parametrize("hazard", HAZARDS, ids=lambda hazard: f"{hazard.rule}-{hazard.says[:20]}")
def test_the_compiler_refuses_an_error_or_builds_what_the_rule_calls_a_misreading(hazard: Hazard) -> None:
    assert builds(hazard.model) == (hazard.rtx == "built")


@pytest.mark.parametrize("case", [name for name in RIGHT if "capacity" not in name])
def test_the_compiler_builds_what_no_rule_complains_about(case: str) -> None:
    assert builds(planted("", *RIGHT[case]))
