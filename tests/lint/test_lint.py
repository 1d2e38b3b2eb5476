"""The verb on real exports: layers are named, outputs are readable, exit codes say whether there is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hlap_export import lint
from hlap_export.errors import ArtefactError, CheckFailed, RecipeError
from hlap_export.families import FAMILIES
from tests.export.exports import TinyExports
from tests.test_cli import exit_code


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_the_portable_flavour_has_no_errors_and_a_note_for_each_growing_cache(
    family: str, target: str, tiny_exports: TinyExports
) -> None:
    report = lint(tiny_exports.get(family, "mixed").folder, target=target)
    assert report.passed
    assert {(finding.rule, finding.layer) for finding in report.findings} == {("cache-grows", 0), ("cache-grows", 2)}
    assert len(report.findings) == 4  # a key and a value each


def test_the_ort_flavour_has_an_error_at_each_operator_of_onnx_runtime_s_own(tiny_exports: TinyExports) -> None:
    report = lint(tiny_exports.get("llama", "dense", flavour="ort").folder, target="tensorrt")
    attention = [finding for finding in report.errors if finding.operator == "GroupQueryAttention"]
    assert [finding.layer for finding in attention] == [0, 1, 2, 3]
    assert attention[2].where == "model.layers.2.self_attn/GroupQueryAttention"
    with pytest.raises(CheckFailed, match=r"found com.microsoft.*more errors.*Fix: export with --flavour trt"):
        report.require_passed()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plan", ["suffix", "partial_heads"])
def test_the_trt_flavour_has_nothing_to_complain_about(family: str, plan: str, tiny_exports: TinyExports) -> None:
    folder = tiny_exports.get(family, plan, "float16", "trt").folder
    assert [lint(folder, target=target).findings for target in ("tensorrt", "tensorrt-rtx")] == [(), ()]


def test_few_heads_are_a_warning_once_the_manifest_that_settles_them_is_gone(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(tiny_exports.get("llama", "partial_heads", "float16", "trt").model_file.read_bytes())
    assert [(found.rule, found.severity, found.layer, found.found) for found in lint(alone).findings] == [
        ("attention-one-token", "warning", 1, "3 query heads")
    ]


def test_a_graph_without_its_weights_and_folder_can_be_checked(tiny_exports: TinyExports, tmp_path: Path) -> None:
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(tiny_exports.get("llama", "mixed").model_file.read_bytes())
    assert lint(alone).passed


def test_a_profile_is_checked_against_the_exported_inputs(tiny_exports: TinyExports) -> None:
    from hlap_export.lint.profile_rules import parse_profile

    given = ["input_ids=1x1:1x8:2x64", "attention_mask=1x1:1x8:2x128", "position_ids=1x1:1x8:2x32"]
    given += [
        f"past_key_values.{layer}.{part}=1x1x0x16:1x1x8x16:2x1x64x16" for layer in (0, 2) for part in ("key", "value")
    ]
    folder = tiny_exports.get("llama", "mixed").folder
    wrong = lint(folder, profile=parse_profile(given)).errors
    assert {finding.where for finding in wrong if "sequence is 1..8..32" in finding.found} == {"position_ids"}


def test_what_isn_t_a_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"a folder with model.onnx"):
        lint(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ArtefactError, match="an ONNX model"):
        lint(tmp_path)


def test_an_unknown_target_is_refused_by_name(tiny_exports: TinyExports) -> None:
    with pytest.raises(RecipeError, match=r"tensorrt, tensorrt-rtx.*found 'onnxruntime'"):
        lint(tiny_exports.get("llama", "mixed").folder, target="onnxruntime")


def test_the_command_line_groups_findings_by_rule_and_exits_with_1(
    tiny_exports: TinyExports, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_exports.get("llama", "dense", flavour="ort").folder
    assert exit_code("lint", folder, "--target", "tensorrt") == 1
    out, err = capsys.readouterr()
    assert out.count("operator-unsupported") == 1
    assert "layers 0 to 3" in out
    assert "more errors" in err


def test_the_command_line_gives_json_and_exits_with_0_where_there_are_only_notes(
    tiny_exports: TinyExports, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("lint", tiny_exports.get("llama", "mixed").folder, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["passed"] is True
    assert {finding["severity"] for finding in told["findings"]} == {"note"}
    assert "2f3fa34" in told["matrix"]
