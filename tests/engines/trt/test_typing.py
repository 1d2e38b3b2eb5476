"""All code for TensorRT is checked against stubs of its real bindings: a call that TensorRT 11 removed doesn't pass."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import tensorrt_rtx

ROOT = Path(__file__).parents[3]

FINE = ("builder.create_builder_config().set_flag(trt.BuilderFlag.TF32)", "builder.create_network(0)")
GONE = {
    "builder.create_builder_config().set_flag(trt.BuilderFlag.FP16)": "FP16",
    "trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH": "EXPLICIT_BATCH",
    "builder.max_workspace_size": "max_workspace_size",
    "builder.build_engine": "build_engine",
    "trt.ComputeCapability.SM89": "ComputeCapability",  # TensorRT-RTX alone has it
}
PROBE = """
from hlap_export.engines.trt.library import TENSORRT

trt = TENSORRT.load()
builder = trt.Builder(trt.Logger())
"""


def test_what_tensorrt_11_lacks_does_not_pass_the_type_check(tmp_path: Path) -> None:
    source = tmp_path / "probe.py"
    source.write_text(PROBE + "".join(f"print({line})\n" for line in (*FINE, *GONE)))
    settings = {"include": [str(source)], "stubPath": str(ROOT / "typings"), "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "pyright", "--outputjson", "-p", str(tmp_path), "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    errors = [found for found in json.loads(done.stdout)["generalDiagnostics"] if found["severity"] == "error"]
    first = PROBE.count("\n") + len(FINE)
    by_line = {found["range"]["start"]["line"] - first: found["message"] for found in errors}
    assert sorted(by_line) == list(range(len(GONE)))
    assert all(name in by_line[index] for index, name in enumerate(GONE.values()))


def test_the_stubs_of_tensorrt_rtx_are_those_of_the_installed_version() -> None:
    text = (ROOT / "typings/tensorrt_rtx/__init__.pyi").read_text()
    assert text.startswith(f"# tensorrt_rtx {tensorrt_rtx.__version__}: generated")
    missing = [name for name in dir(tensorrt_rtx.IBuilderConfig) if not name.startswith("_") and name not in text]
    assert not missing
