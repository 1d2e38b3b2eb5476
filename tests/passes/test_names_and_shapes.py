"""Reshape targets, dimension names, node names, and what is stripped."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from hlap_export.passes.constant_reshapes import ConstantReshapes
from hlap_export.passes.name_constants import NameConstants
from hlap_export.passes.name_dims import NameDims
from hlap_export.passes.name_nodes import SCOPES, NameNodes
from hlap_export.passes.order import PORTABLE
from hlap_export.passes.simplify import Simplify
from hlap_export.passes.strip_provenance import StripProvenance

HEADER = '<ir_version: 10, opset_import: ["" : 18]>'


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        ("s1, s2, 48", "s1, s2, 6, 8", [0, 0, 6, 8]),
        ("s1, s2, 6, 8", "s1, s2, 48", [0, 0, 48]),
        ("s1, 6, s2, 8", "s1, 2, s3, 8", [0, 2, -1, 8]),
        ("s1, s2, 48", "s3, 48", [-1, 48]),
    ],
)
def test_a_reshape_between_known_shapes_gets_a_constant_target(before: str, after: str, target: list[int]) -> None:
    model = ir.from_onnx_text(
        f"{HEADER} g (float[{before}] x, int64[R] shape) => (float[{after}] y)"
        " { y = Reshape <allowzero=1> (x, shape) }"
    )
    assert ConstantReshapes()(model).modified
    node = next(iter(model.graph))
    assert node.inputs[1].const_value.numpy().tolist() == target
    assert node.attributes["allowzero"].as_int() == 0


@pytest.mark.parametrize(("before", "after"), [("s1, s2, 48", "s2, s1, 48"), ("s1, s2", "s3, s4"), ("s1, 0", "s1, 0")])
def test_a_reshape_that_a_constant_cannot_express_keeps_its_computed_target(before: str, after: str) -> None:
    model = ir.from_onnx_text(
        f"{HEADER} g (float[{before}] x, int64[R] shape) => (float[{after}] y)"
        " { y = Reshape <allowzero=1> (x, shape) }"
    )
    assert not ConstantReshapes()(model).modified


def test_dimensions_get_the_contracts_names_also_inside_sums() -> None:
    model = ir.from_onnx_text(
        f"{HEADER} g (float[s1, s15] past, float[s1, s70] new) => (float[s1, total] y)"
        " { y = Concat <axis=1> (past, new) }"
    )
    model.graph.outputs[0].shape = ir.Shape(["s1", "s15 + s70"])
    NameDims({"batch": ("new", 0), "sequence": ("new", 1), "past": ("past", 1)})(model)
    assert str(model.graph.inputs[0].shape) == "[batch,past]"
    assert str(model.graph.outputs[0].shape) == "[batch,past + sequence]"


def scoped(scope: str) -> ir.Model:
    model = ir.from_onnx_text(
        f"{HEADER} g (float[N] x) => (float[N] y) <float[1] val_7 = {{2.0}}>"
        " { a = Mul (x, val_7) b = Mul (a, val_7) y = Exp (b) }"
    )
    for node in model.graph:
        node.metadata_props[SCOPES] = repr(["", "model", scope, "operator"])
        node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "/home/someone/model.py", line 3'
    return model


def test_nodes_are_named_by_module_and_their_values_and_constants_after_them() -> None:
    model = scoped("model.model.layers.3.mlp")
    NameNodes(wrapper="model")(model)
    NameConstants()(model)
    assert [node.name for node in model.graph] == [
        "model.layers.3.mlp/Mul",
        "model.layers.3.mlp/Mul_1",
        "model.layers.3.mlp/Exp",
    ]
    assert [node.outputs[0].name for node in model.graph] == ["model.layers.3.mlp/Mul", "model.layers.3.mlp/Mul_1", "y"]
    assert list(model.graph.initializers) == ["model.layers.3.mlp/Mul.1"]


def test_stripping_leaves_no_note_of_the_tracer_but_keeps_the_models_own() -> None:
    model = scoped("model.layers.3.mlp")
    model.metadata_props["hlap.layout"] = "{}"
    assert StripProvenance()(model).modified
    assert b"someone" not in ir.to_proto(model).SerializeToString()
    assert model.metadata_props == {"hlap.layout": "{}"}
    assert not StripProvenance()(model).modified


def test_simplify_computes_vectors_but_merges_only_scalars_and_drops_what_is_unused() -> None:
    ones = ", ".join(["1.0"] * 20)
    model = ir.from_onnx_text(f"""{HEADER}
        g (float[20] x) => (float[20] y)
            <float[20] u = {{{ones}}}, float[20] w = {{{ones}}}, float[20] unread = {{{ones}}}>
        {{
            one = Constant <value_float = 1.0> ()
            gain = Add (one, u)
            a = Mul (x, gain)
            b = Mul (a, w)
            dead = Exp (b)
            y = Neg (b)
        }}
    """)
    assert Simplify()(model).modified
    assert [node.op_type for node in model.graph] == ["Mul", "Mul", "Neg"]
    assert set(model.graph.initializers) == {"gain", "w"}
    assert model.graph.initializers["gain"].const_value.numpy().tolist() == [2.0] * 20


def test_the_order_names_before_it_strips_and_checks_last() -> None:
    names = [type(declared).__name__ for declared in PORTABLE]
    assert names.index("NameNodes") < names.index("NameConstants") < names.index("StripProvenance")
    assert names.index("TransposeLinearWeights") < names.index("TiedHeadAsGemm") < names.index("Simplify")
    assert names[-1] == "CheckerPass"
