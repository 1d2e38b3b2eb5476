"""Each rule finds its hazard where it was planted, and nothing in graphs that are right."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from hlap_export.lint import Finding, lint
from hlap_export.lint.attention_rules import ATTENTION_RULES
from hlap_export.lint.cache_rules import CACHE_RULES
from hlap_export.lint.operator_rules import OPERATOR_RULES
from tests.lint.hazards import CACHE, DECODE, HAZARDS, NODE, QKV, Hazard

RULES = (*OPERATOR_RULES, *ATTENTION_RULES, *CACHE_RULES)


def findings(folder: Path, model: onnx.ModelProto, target: str = "tensorrt-rtx") -> list[Finding]:
    onnx.save(model, folder / "model.onnx")
    return list(lint(folder, target=target).findings)


def planted(rule: str, signature: str, node: str, **other: str) -> onnx.ModelProto:
    return Hazard(rule=rule, signature=signature, planted=node, says="", **other).model  # type: ignore[arg-type]


def names(found: list[Finding]) -> set[str]:
    return {finding.rule for finding in found}


@pytest.mark.parametrize("hazard", HAZARDS, ids=lambda hazard: f"{hazard.rule}-{hazard.says[:20]}")
def test_a_planted_hazard_is_found_and_nothing_else(hazard: Hazard, tmp_path: Path) -> None:
    found = findings(tmp_path, hazard.model)
    assert {(finding.rule, finding.severity, finding.where) for finding in found} == {(hazard.rule, "error", NODE)}
    assert hazard.says in found[0].found
    assert found[0].layer == 7


RIGHT = {
    "attention over as many keys as queries may be causal": (QKV, "y = Attention<is_causal: int = 1>(q, k, v)"),
    "a boolean mask": (QKV.replace(") =>", ", bool[1,1,16,16] m) =>"), "y = Attention(q, k, v, m)"),
    "a mask of the queries' type": (QKV.replace(") =>", ", float16[1,1,16,16] m) =>"), "y = Attention(q, k, v, m)"),
    "a decode step": (DECODE, "y = Attention(q, k, v)"),
    "an operator that may be decomposed": (
        DECODE.replace("float16", "float"),
        "y = Attention<TRT_decomposable: int = 1>(q, k, v)",
    ),
    "a cache that is updated in place": (CACHE, "y = TensorScatter<axis: int = -2>(c, u, w)"),
    "a cache whose capacity the builder sets": (
        CACHE.replace(",64,", ",capacity,"),
        "y = TensorScatter<axis: int = -2>(c, u, w)",
    ),
    "a norm whose gain is wider": ("(float16[4,8] x, float[8] w) => (float[4,8] y)", "y = RMSNormalization(x, w)"),
    "uint8 at the border": ("(uint8[4] x) => (float[4] y)", "y = Cast<to: int = 1>(x)"),
    "a plain scatter": ("(float[8] x, int64[2,1] i, float[2] u) => (float[8] y)", "y = ScatterND(x, i, u)"),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_left_alone(case: str, tmp_path: Path) -> None:
    assert findings(tmp_path, planted("", *RIGHT[case]), "tensorrt-rtx") == []
    assert findings(tmp_path, planted("", *RIGHT[case]), "tensorrt") == []


ONLY_DOCUMENTED = {
    "attention-rank": (
        "(float16[1,16,256] q, float16[1,16,128] k, float16[1,16,128] v) => (float16[1,16,256] y)",
        "y = Attention<q_num_heads: int = 4, kv_num_heads: int = 2>(q, k, v)",
    ),
    "topk-unsorted": (
        "(float[1,80] x, int64[1] k) => (float[1,K] y, int64[1,K] i)",
        "y, i = TopK<sorted: int = 0>(x, k)",
    ),
    "rotary-positions": (
        "(float16[1,2,4,16] x, float16[64,8] c, float16[64,8] s, int32[1,4] p) => (float16[1,2,4,16] y)",
        "y = RotaryEmbedding(x, c, s, p)",
    ),
}


@pytest.mark.parametrize("rule", ONLY_DOCUMENTED)
def test_what_tensorrt_s_documents_forbid_and_rtx_takes_is_an_error_for_tensorrt_alone(
    rule: str, tmp_path: Path
) -> None:
    assert names(findings(tmp_path, planted(rule, *ONLY_DOCUMENTED[rule]), "tensorrt")) == {rule}
    assert findings(tmp_path, planted(rule, *ONLY_DOCUMENTED[rule]), "tensorrt-rtx") == []


def test_a_kernel_that_only_rtx_was_seen_to_lack_is_a_warning_for_tensorrt(tmp_path: Path) -> None:
    lacking = next(hazard for hazard in HAZARDS if hazard.rule == "attention-no-kernel")
    assert [finding.severity for finding in findings(tmp_path, lacking.model, "tensorrt")] == ["warning"]


def test_three_heads_are_a_warning_where_a_profile_may_be_of_one_token(tmp_path: Path) -> None:
    text = QKV.replace("1,4,16", "1,3,T").replace("1,2,16", "1,1,16")
    assert [
        (found.rule, found.severity) for found in findings(tmp_path, planted("", text, "y = Attention(q, k, v)"))
    ] == [("attention-one-token", "warning")]


def test_doubles_are_a_warning(tmp_path: Path) -> None:
    found = findings(tmp_path, planted("", "(double[4] x) => (double[4] y)", "y = Sqrt(x)"))
    assert [(finding.rule, finding.severity) for finding in found] == [("float64", "warning")]


def test_tensorrt_s_own_attention_operator_is_a_warning(tmp_path: Path) -> None:
    found = findings(tmp_path, planted("", QKV, "y = TRT_Attention(q, k, v)"))
    assert [(finding.rule, finding.severity) for finding in found] == [("attention-unstable-operator", "warning")]


def test_a_cache_that_grows_is_a_note(tmp_path: Path) -> None:
    signature = "(float16[1,2,P,16] past, float16[1,2,T,16] new) => (float16[1,2,S,16] present)"
    found = findings(tmp_path, planted("", signature, "present = Concat<axis: int = 2>(past, new)"))
    assert [(finding.rule, finding.severity) for finding in found] == [("cache-grows", "note")]


def test_a_hazard_inside_of_a_loop_is_found(tmp_path: Path) -> None:
    body = "step (int64 i, bool c, float[8] a) => (bool d, float[8] b) { d = Identity(c) b = BitwiseAnd(a, a) }"
    model = planted("", "(int64 n, bool c, float[8] x) => (float[8] y)", f"y = Loop(n, c, x)<body = {body}>")
    assert "operator-unsupported" in names(findings(tmp_path, model))


def test_branches_of_different_ranks_are_refused(tmp_path: Path) -> None:
    branches = (
        "then_branch = a () => (float[4] t) { t = Relu(x) }, else_branch = b () => (float[1,4] e) "
        "{ k = Constant<value_ints: ints = [0]>() e = Unsqueeze(x, k) }"
    )
    model = planted("", "(bool c, float[4] x) => (float[N] y)", f"y = If(c)<{branches}>")
    assert "if-ranks" in names(findings(tmp_path, model))


@pytest.mark.parametrize("opset", [8, 26])
def test_an_opset_that_isn_t_documented_is_a_warning(opset: int, tmp_path: Path) -> None:
    model = planted("", "(float[4] x) => (float[4] y)", "y = Relu(x)", opset=opset)  # type: ignore[arg-type]
    assert [(finding.rule, finding.severity) for finding in findings(tmp_path, model)] == [("opset", "warning")]


def test_a_dynamic_dimension_without_a_name_is_a_warning(tmp_path: Path) -> None:
    model = planted("", "(float[4,?] x) => (float[4,?] y)", "y = Relu(x)")
    found = findings(tmp_path, model)
    assert [(finding.rule, finding.where, finding.found) for finding in found] == [
        ("dimension-unnamed", "x", "dimension 1 without a name")
    ]


def test_every_rule_of_the_table_has_a_planted_hazard() -> None:
    tested = {hazard.rule for hazard in HAZARDS} | set(ONLY_DOCUMENTED)
    elsewhere = {"float64", "if-ranks", "attention-one-token", "attention-unstable-operator", "cache-grows"}
    assert {rule.name for rule in RULES} == tested | elsewhere
