"""Prune a decoder LLM's high attention layers and ship it as a smaller, verified engine.

Each verb of the command line is one function here:

    from hlap_export import plan, prune, export, lint, build, verify, bench, gate
    from hlap_export import compare, generate, bundle, run, inspect, doctor

The functions are imported when they are first used: `import hlap_export` itself loads no framework.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hlap_export.bench import bench as bench
    from hlap_export.bundles import bundle as bundle
    from hlap_export.doctor import doctor as doctor
    from hlap_export.engines import build as build
    from hlap_export.evaluate import evaluate as evaluate
    from hlap_export.export import export as export
    from hlap_export.gate import gate as gate
    from hlap_export.generate import generate as generate
    from hlap_export.inspection import inspect as inspect
    from hlap_export.integrity import verify_manifest as verify_manifest
    from hlap_export.lint import lint as lint
    from hlap_export.pipeline import run as run
    from hlap_export.plan import plan as plan
    from hlap_export.prune import prune as prune
    from hlap_export.report.comparison import compare as compare
    from hlap_export.verify import verify as verify

__all__ = [
    "bench",
    "build",
    "bundle",
    "compare",
    "doctor",
    "evaluate",
    "export",
    "gate",
    "generate",
    "inspect",
    "lint",
    "plan",
    "prune",
    "run",
    "verify",
    "verify_manifest",
]
__version__ = "0.1.0"


class _Verb:
    """A function, imported on first use, that wins over the sub-package of the same name.

    Importing `hlap_export.plan` makes Python bind that package to this one's attribute `plan`; a descriptor that
    ignores the binding keeps `hlap_export.plan` the function. `from hlap_export.plan import X` isn't affected.
    """

    def __init__(self, module: str, name: str) -> None:
        self._module, self._name = module, name

    def __get__(self, package: ModuleType | None, owner: type) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __set__(self, package: ModuleType, value: object) -> None:
        pass


class _PublicApi(ModuleType):
    bench = _Verb("hlap_export.bench", "bench")
    build = _Verb("hlap_export.engines", "build")
    bundle = _Verb("hlap_export.bundles", "bundle")
    compare = _Verb("hlap_export.report.comparison", "compare")
    doctor = _Verb("hlap_export.doctor", "doctor")
    evaluate = _Verb("hlap_export.evaluate", "evaluate")
    export = _Verb("hlap_export.export", "export")
    gate = _Verb("hlap_export.gate", "gate")
    generate = _Verb("hlap_export.generate", "generate")
    inspect = _Verb("hlap_export.inspection", "inspect")
    lint = _Verb("hlap_export.lint", "lint")
    plan = _Verb("hlap_export.plan", "plan")
    prune = _Verb("hlap_export.prune", "prune")
    run = _Verb("hlap_export.pipeline", "run")
    verify = _Verb("hlap_export.verify", "verify")
    verify_manifest = _Verb("hlap_export.integrity", "verify_manifest")


sys.modules[__name__].__class__ = _PublicApi
