"""Compile an export of flavour `trt` into plans, and open them where there is a GPU."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hlap_export.artifacts import Manifest, read_manifest
from hlap_export.engines.base import (
    GRAPH,
    ITEMSIZE_BYTES,
    Compiled,
    KVLayer,
    Session,
    Unavailable,
    kv_bytes_per_token,
)
from hlap_export.engines.trt.compiling import CompiledPlan, compile_plan
from hlap_export.engines.trt.graph import read_graph
from hlap_export.engines.trt.inspection import EngineLayer, as_json, layers_of
from hlap_export.engines.trt.library import Library
from hlap_export.engines.trt.options import TensorRTOptions, resolved, sizes_of
from hlap_export.engines.trt.phases import PHASES, PhaseName, ranges, shape_ranges
from hlap_export.engines.trt.rtx import building_gpu, require_possible, why_not_this_gpu
from hlap_export.errors import ArtefactError

FLAVOUR = "trt"
DEFAULTS = TensorRTOptions()
INSPECTION = "inspection.json"
BOTH_PHASES = "model.engine"
"""The plan that holds prefill and decode; where they are two, each is named for its phase."""

_FIGURE = re.compile(r"^Total (?P<what>Weights|Activation) Memory: (?P<bytes>\d+) bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRTBackend:
    """One of the two libraries as an engine of this package.

    Attributes:
        library: which one.
        options: what to build for.
    """

    library: Library
    options: TensorRTOptions = DEFAULTS

    @property
    def name(self) -> str:
        """What `--engine` calls it."""
        return self.library.name

    def why_unavailable(self) -> Unavailable | None:
        """Why it can't build here; None if it can."""
        return self.library.why_unavailable()

    def why_not_runnable(self) -> Unavailable | None:
        """Why it can't run here what it built; None if it can."""
        return self.library.why_not_runnable() or why_not_this_gpu(self.library, self.options)

    def tuned(self, options: TensorRTOptions | None, source: Manifest) -> TensorRTBackend:
        """This backend with the sizes that it will build an export for."""
        asked = options or self.options
        return replace(self, options=resolved(asked, max_positions=int(source.facts["layout"]["max_positions"])))

    def parameters(self) -> dict[str, Any]:
        """What decides the result beside the export and the library's version."""
        return self.options.parameters() | building_gpu(self.library, self.options)

    def compile(self, onnx: Path, out: Path) -> Compiled:
        """Build the plan, or one for each phase, and write down which kernels they run.

        Raises:
            ArtefactError: another flavour, sizes that the model doesn't allow, or a graph that the library refuses.
        """
        from hlap_export.passes import attention_kernels

        source = read_manifest(onnx, kind="onnx")
        _require_flavour(onnx, source, self.name)
        options = self.tuned(self.options, source).options
        require_possible(self.library, options)
        sizes = sizes_of(options)
        graph = read_graph(onnx / GRAPH, capacity=sizes.capacity)
        attention = source.facts["attention"]
        decode_tokens = attention_kernels.decode_tokens(attention, sizes.capacity)
        shapes = {
            phase: shape_ranges(graph.inputs, ranges(phase, sizes, decode_tokens=decode_tokens)) for phase in PHASES
        }
        plans: dict[str, CompiledPlan] = {}
        for name, phases in plan_files(two_engines=options.two_engines).items():
            profiles = [shapes[phase] for phase in phases]
            plans[name] = compile_plan(self.library, graph, profiles, options, out / name)
        if options.strip_weights:
            _bring_weights(onnx, out)
        layers = _layers_by_phase(options, plans)
        (out / INSPECTION).write_text(
            json.dumps({phase: found and as_json(found) for phase, found in layers.items()}, indent=1)
        )
        return Compiled(
            parameters=options.parameters(),
            facts={
                "compiler": self.library.compiler,
                "decode_tokens": decode_tokens,
                "attention": attention_kernels.built_forms(attention, sizes.capacity),
                "plans": {name: _plan_facts(plan, out / name) for name, plan in plans.items()},
                "phases": {phase: _phase_facts(found) for phase, found in layers.items()},
                "warnings": _warnings(plans.values()),
                **_layout_facts(source, self.library, sizes.capacity),
            },
        )

    def open(self, engine: Path, *, threads: int) -> Session:
        """Load the plans onto the GPU.

        Raises:
            ArtefactError: the library can't load them here.
        """
        from hlap_export.engines.trt.session import open_plans

        split = bool(read_manifest(engine, kind="engine").parameters.get("two_engines"))
        return open_plans(self.library, engine, plan_files(two_engines=split), threads=threads)


def plan_files(*, two_engines: bool) -> dict[str, tuple[PhaseName, ...]]:
    """The plan files, and the phases that each one holds a profile for, in order."""
    if two_engines:
        return {f"{phase}.engine": (phase,) for phase in PHASES}
    return {BOTH_PHASES: PHASES}


def _require_flavour(onnx: Path, source: Manifest, engine: str) -> None:
    flavour = source.parameters.get("flavour")
    if flavour != FLAVOUR:
        raise ArtefactError(
            where=str(onnx),
            expected=f"an export of flavour {FLAVOUR}, which is what {engine} takes",
            found=f"flavour {flavour}",
            fix=f"export the checkpoint with --flavour {FLAVOUR}",
        )


def _layers_by_phase(
    options: TensorRTOptions, plans: dict[str, CompiledPlan]
) -> dict[PhaseName, list[EngineLayer] | None]:
    """The kernels of each phase; None where the compiler listed none."""
    found: dict[PhaseName, list[EngineLayer] | None] = {}
    for name, phases in plan_files(two_engines=options.two_engines).items():
        layers = layers_of(plans[name].log.layers)
        for profile, phase in enumerate(phases):
            found[phase] = [layer for layer in layers if layer.profile == profile] if layers else None
    return found


def _phase_facts(layers: Sequence[EngineLayer] | None) -> dict[str, Any]:
    if layers is None:
        return {"num_kernels": None, "fused_attention_layers": None}
    fused = sorted(layer.fused_attention for layer in layers if layer.fused_attention is not None)
    return {"num_kernels": len(layers), "fused_attention_layers": fused}


def _warnings(plans: Collection[CompiledPlan]) -> list[str]:
    warnings = {warning for plan in plans for warning in plan.log.warnings}
    if not all(layers_of(plan.log.layers) for plan in plans):
        warnings.add("the compiler listed no layers: which kernels run isn't known")
    return sorted(warnings)


def _plan_facts(plan: CompiledPlan, path: Path) -> dict[str, Any]:
    figures: dict[str, int] = {}
    for note in plan.log.notes:
        if figure := _FIGURE.match(note):
            key = f"{figure['what'].lower()}_bytes"
            figures[key] = max(figures.get(key, 0), int(figure["bytes"]))  # of two profiles, the larger
    return {
        "size_bytes": path.stat().st_size,
        "build_seconds": plan.seconds,
        "num_network_layers": plan.num_network_layers,
        "bindings": list(plan.bindings),
        **figures,
    }


def _layout_facts(source: Manifest, library: Library, capacity: int) -> dict[str, Any]:
    """What a session would say of itself, from the export: without a GPU none can be opened."""
    layout, dtype = source.facts["layout"], str(source.parameters["dtype"])
    layers = [
        KVLayer(index=index, num_kv_heads=layer["num_kv_heads"], head_dim=layout["head_dim"])
        for index, layer in enumerate(layout["layers"])
        if layer["kind"] == "full"
    ]
    per_token = kv_bytes_per_token(layers, ITEMSIZE_BYTES[dtype])
    return {
        "provider": library.compiler,
        "vocab_size": layout["vocab_size"],
        "kv_layers": [
            {"index": layer.index, "num_kv_heads": layer.num_kv_heads, "head_dim": layer.head_dim} for layer in layers
        ],
        "kv_bytes_per_token": per_token,
        "kv_bytes_per_row": per_token * capacity,
    }


def _bring_weights(onnx: Path, out: Path) -> None:
    """Copy the graph and its weights, from which a stripped plan is filled when it is loaded."""
    for path in onnx.glob(f"{GRAPH}*"):
        shutil.copyfile(path, out / path.name)
