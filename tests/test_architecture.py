"""The rules that keep the code readable: imports run one way, files stay small, the command line stays what it is."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from hlap_export import cli

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hlap_export"
SOURCES = sorted(PACKAGE.rglob("*.py"))

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

# Each room may import from those before it in this list, and from itself.
ORDER = (
    "errors",
    "on_progress",
    "quantiles",
    "machine",
    "direct_file",
    "digests",
    "statement",
    "manifest",
    "artifacts",
    "integrity",
    "resumable",
    "progress",
    "families",
    "checkpoint",
    "counting",
    "texts",
    "reference_model",
    "hub",
    "plan",
    "fold",
    "prune",
    "weights",
    "passes",
    "export",
    "lint",
    "engines",
    "generate",
    "evaluate",
    "bundles",
    "verify",
    "bench",
    "report",
    "strict_yaml",
    "recipe",
    "measuring",
    "budget",
    "gate",
    "stages",
    "inspection",
    "doctor",
    "run_stages",
    "pipeline",
    "terminal",
    "cli",
)
FRAMEWORKS = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")
ENGINE_LIBRARIES = ("onnxruntime", "tensorrt", "tensorrt_rtx")
# Weights are quantised by the kernels of the runtime that reads them.
USES_AN_ENGINE_LIBRARY = "passes/blockwise.py"

FLAGS = {
    "run": {"--out", "--recipe", "--resume", "--trust-remote-code", "--max-memory", "--engine", "--bundle"},
    "plan": {
        "--out",
        "--method",
        "--num-layers",
        "--choose-by",
        "--tune",
        "--max-perplexity-increase",
        "--target-latency-ratio",
        "--target-kv-ratio",
        "--max-weights",
        "--measure",
        "--alpha",
        "--text",
        "--recipe",
        "--trust-remote-code",
        "--max-memory",
    },
    "prune": {"--plan", "--out", "--max-memory"},
    "export": {"--out", "--flavour", "--dtype", "--block-size", "--max-memory"},
    "lint": {"--target", "--shapes"},
    "build": {"--out", "--engine", "--recipe", "--capacity", "--max-batch", "--max-prompt", "--max-memory"},
    "verify": {"--reference", "--baseline", "--dense", "--text", "--bisect", "--recipe", "--max-memory"},
    "bench": {"--baseline", "--prompt-length", "--context-length", "--batch", "--recipe", "--max-memory"},
    "compare": {"--out"},
    "gate": {"--baseline", "--candidate", "--rules", "--junit", "--accept"},
    "eval": {
        "--tasks",
        "--baseline",
        "--tasks-folder",
        "--num-fewshot",
        "--limit",
        "--batch-size",
        "--chat",
        "--max-memory",
    },
    "generate": {
        "--prompt",
        "--max-new-tokens",
        "--temperature",
        "--top-k",
        "--top-p",
        "--seed",
        "--chat",
        "--max-memory",
    },
    "bundle": {"--out", "--target", "--max-memory"},
    "inspect": set[str](),
    "verify-manifest": set[str](),
    "doctor": set[str](),
}


def room(path: Path) -> str:
    """The top-level module or package that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports, inside functions too."""
    rooms: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hlap_export"):
            _, *rest = (node.module or "").split(".")
            rooms |= {rest[0]} if rest else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hlap_export.")}
    return rooms


def loaded_frameworks(module: str) -> list[str]:
    """Frameworks that are loaded once `module` is imported in a fresh interpreter."""
    code = f"import {module}, sys, json; print(json.dumps([m for m in {FRAMEWORKS!r} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)


def test_every_source_file_has_its_place_in_the_order() -> None:
    assert {room(path) for path in SOURCES} - {"__init__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name: str) -> None:
    allowed = set(ORDER[: ORDER.index(name) + 1])
    wrong = {
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in SOURCES
        if room(path) == name
        for other in imported_rooms(path) - allowed
    }
    assert not wrong


def test_files_stay_below_the_hard_limit() -> None:
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert not {name: lines for name, lines in long.items() if lines > MAX_FILE_LINES}


def test_functions_stay_below_the_hard_limit() -> None:
    long = [
        f"{path.relative_to(ROOT)}: {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long


def test_the_story_fits_on_a_screen_and_never_asks_for_the_family_or_backend() -> None:
    tree = ast.parse((PACKAGE / "pipeline.py").read_text())
    story = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    conditions = [ast.unparse(node.test) for node in ast.walk(tree) if isinstance(node, ast.If | ast.IfExp)]
    assert story.end_lineno is not None
    assert story.end_lineno - story.lineno < 60
    assert not [text for text in conditions if re.search(r"famil|model_type|engine|backend|flavour", text)]


def test_no_module_is_named_for_nothing() -> None:
    assert not {path.stem for path in SOURCES} & {"utils", "util", "helpers", "misc", "common", "manager"}


def test_engine_libraries_are_named_in_engines_alone_but_for_the_quantiser() -> None:
    wrong = {
        str(path.relative_to(PACKAGE))
        for path in SOURCES
        if room(path) != "engines" and str(path.relative_to(PACKAGE)) != USES_AN_ENGINE_LIBRARY
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imported_names(node)
        if name.split(".")[0] in ENGINE_LIBRARIES
    }
    assert not wrong


def _imported_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module else []


@pytest.mark.parametrize("module", ["hlap_export", "hlap_export.cli", "hlap_export.report.markdown"])
def test_what_should_start_fast_loads_no_framework(module: str) -> None:
    assert loaded_frameworks(module) == []


def test_the_command_line_has_these_verbs_and_flags_and_no_others() -> None:
    root = typer.main.get_command(cli.app)
    flags = {
        name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        for name, command in root.commands.items()  # type: ignore[attr-defined]
    }
    assert flags == {verb: own | {"--json", "--debug"} for verb, own in FLAGS.items()}
    assert {option for parameter in root.params for option in parameter.opts} == {"--version"}


@pytest.mark.parametrize("verb", FLAGS)
def test_the_readme_shows_every_verb(verb: str) -> None:
    assert re.search(rf"hlap-export {verb}\b", (ROOT / "README.md").read_text())


def test_the_package_ships_its_data_and_types() -> None:
    assert (PACKAGE / "py.typed").is_file()
    for name in ("report.md.jinja", "report.html.jinja", "compare.html.jinja", "page.css"):
        assert (PACKAGE / "report/templates" / name).is_file()


# TensorRT-RTX's compiler works on any machine, and these bindings need a driver only to be called.
WITHOUT_GPU = ("tensorrt-rtx", "cuda-bindings", "cuda-pathfinder")


def test_the_pinned_environment_brings_no_package_that_needs_a_gpu() -> None:
    pinned = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pinned)
    nvidia = [line for line in pinned if re.search(r"nvidia|cuda|triton|tensorrt|gpu", line, re.IGNORECASE)]
    assert not [line for line in nvidia if not line.startswith(WITHOUT_GPU)]
