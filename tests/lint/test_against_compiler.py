"""The rules against the real compiler: what they call an error is refused by it, and what they pass is built.

TensorRT-RTX parses and builds on a CPU; without it these tests are skipped.
"""

from __future__ import annotations

import re
from typing import Any

import onnx
import pytest

from tests.lint.hazards import HAZARDS, Hazard
from tests.lint.test_rules import RIGHT, planted

trt: Any = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx isn't installed: pip install '.[rtx]'")


class Errors(trt.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if int(severity) <= int(trt.ILogger.ERROR):
            self.messages.append(message)


def why_refused(model: onnx.ModelProto) -> str | None:
    """What the compiler says in place of an engine of the model, None where it makes one; unnamed sizes are 64."""
    logger = Errors()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return "\n".join(f"{error.node_operator()}: {error.desc()}" for error in errors)
    profile = builder.create_optimization_profile()
    for value in model.graph.input:
        sizes = [dim.dim_value or 64 for dim in value.type.tensor_type.shape.dim]
        if any(not dim.dim_value for dim in value.type.tensor_type.shape.dim):
            profile.set_shape(value.name, sizes, sizes, sizes)
    config = builder.create_builder_config()
    config.add_optimization_profile(profile)
    return None if builder.build_serialized_network(network, config) else "\n".join(logger.messages)


@pytest.mark.parametrize("hazard", HAZARDS, ids=lambda hazard: f"{hazard.rule}-{hazard.says[:20]}")
def test_the_compiler_refuses_an_error_or_builds_what_the_rule_calls_a_misreading(hazard: Hazard) -> None:
    said = why_refused(hazard.model)
    if hazard.refused_with is None:
        assert said is None
    else:
        assert re.search(hazard.refused_with, said or "", re.DOTALL), said


@pytest.mark.parametrize("case", [name for name in RIGHT if "capacity" not in name])
def test_the_compiler_builds_what_no_rule_complains_about(case: str) -> None:
    assert why_refused(planted("", *RIGHT[case])) is None
