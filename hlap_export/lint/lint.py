"""The lint verb: every node, input and profile against what is known of a compiler, before it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlap_export.artifacts import MANIFEST, read_manifest
from hlap_export.errors import ArtefactError, RecipeError
from hlap_export.export import MODEL_FILE
from hlap_export.lint.report import Finding, LintReport

if TYPE_CHECKING:
    import onnx_ir as ir

    from hlap_export.lint.profile_rules import Problem, Profile

SEVERITIES = ("error", "warning", "note")
NO_PROFILE: Mapping[str, Any] = {}


def lint(export_dir: Path, *, target: str = "tensorrt-rtx", profile: Profile = NO_PROFILE) -> LintReport:
    """Check an export for what a compiler would refuse, misread without a word, or make slow.

    Nothing is built and no weight is read: it takes a second, on any machine.

    Args:
        export_dir: what `export` wrote, or an .onnx file.
        target: "tensorrt" or "tensorrt-rtx".
        profile: sizes of the inputs with which the engine is to be built; empty checks none.

    Raises:
        ArtefactError: no graph there.
        RecipeError: an unknown target.
    """
    from hlap_export.lint.graph import all_nodes, load_graph
    from hlap_export.lint.operators import MATRIX

    _require_known(target)
    path = _graph_of(export_dir)
    model = load_graph(path)
    findings = [
        *_input_findings(model, profile, target),
        *_node_findings(model, target, _layers_with_the_prompt_kernel(path)),
    ]
    return LintReport(
        graph=str(path),
        target=target,
        matrix=f"{MATRIX.source} (TensorRT {MATRIX.version})",
        num_nodes=sum(1 for _ in all_nodes(model)),
        findings=tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))),
    )


def _require_known(target: str) -> None:
    from hlap_export.lint.operators import TARGETS

    if target not in TARGETS:
        raise RecipeError(
            where="--target",
            expected=f"one of: {', '.join(TARGETS)}",
            found=repr(target),
            fix="choose one of these; ONNX Runtime says by itself what it can't load, in `hlap-export build`",
        )


def _graph_of(export_dir: Path) -> Path:
    path = export_dir / MODEL_FILE if export_dir.is_dir() else export_dir
    if not path.is_file():
        raise ArtefactError(
            where=str(export_dir),
            expected=f"a folder with {MODEL_FILE}, or an .onnx file",
            found="a folder without it" if export_dir.is_dir() else "nothing there",
            fix="pass the folder that `hlap-export export` wrote",
        )
    return path


def _layers_with_the_prompt_kernel(path: Path) -> frozenset[int]:
    """Layers for which `build` widens the decode profile, as the export's manifest tells it to."""
    if not (path.parent / MANIFEST).is_file():
        return frozenset()
    attention: list[dict[str, Any]] = read_manifest(path.parent).facts.get("attention", [])
    return frozenset(layer["layer"] for layer in attention if layer.get("decode") == "prompt_kernel")


def _node_findings(model: ir.Model, target: str, settled: frozenset[int]) -> Iterator[Finding]:
    from hlap_export.lint.attention_rules import ATTENTION_RULES
    from hlap_export.lint.cache_rules import CACHE_RULES
    from hlap_export.lint.graph import all_nodes, layer_of
    from hlap_export.lint.operator_rules import OPERATOR_RULES

    rules = [rule for rule in (*OPERATOR_RULES, *ATTENTION_RULES, *CACHE_RULES) if target in rule.severity]
    for node in all_nodes(model):
        for rule in rules:
            found = rule.found(node) if not rule.operators or node.op_type in rule.operators else None
            layer = layer_of(node.name or "")
            if found is None or (rule.name == "attention-one-token" and layer in settled):
                continue
            yield Finding(
                rule=rule.name,
                severity=rule.severity[target],
                where=node.name or f"the node that makes {node.outputs[0].name}",
                operator=node.op_type,
                layer=layer,
                expected=rule.expected,
                found=found,
                fix=rule.fix,
                source=rule.source,
            )


def _input_findings(model: ir.Model, profile: Profile, target: str) -> Iterator[Finding]:
    from hlap_export.lint.graph import dims, layer_of
    from hlap_export.lint.input_rules import INPUT_RULES
    from hlap_export.lint.profile_rules import profile_problems

    inputs = {value.name or "": dims(value) or () for value in model.graph.inputs}
    problems = [*_signature_problems(model), *(profile_problems(inputs, profile) if profile else ())]
    for name, where, found in problems:
        rule = INPUT_RULES[name]
        yield Finding(
            rule=name,
            severity=rule.severity[target],
            where=where,
            operator=None,
            layer=layer_of(where),
            expected=rule.expected,
            found=found,
            fix=rule.fix,
            source=rule.source,
        )


def _signature_problems(model: ir.Model) -> Iterator[Problem]:
    from hlap_export.lint.graph import dims
    from hlap_export.lint.operators import MATRIX

    opset = model.opset_imports.get("", 0)
    if not MATRIX.opsets[0] <= opset <= MATRIX.opsets[1]:
        yield "opset", "the graph", f"opset {opset}"
    for value in model.graph.inputs:
        for axis, dim in enumerate(dims(value) or ()):
            if dim is None:
                yield "dimension-unnamed", value.name or "", f"dimension {axis} without a name"
