"""From a graph to a plan: parse, describe the shapes, build."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hlap_export.engines.trt.graph import Graph
from hlap_export.engines.trt.inspection import bindings_of, bindings_of_network
from hlap_export.engines.trt.library import Library, Log, open_log
from hlap_export.engines.trt.options import TensorRTOptions
from hlap_export.engines.trt.phases import ShapeRange
from hlap_export.engines.trt.rtx import target_gpus
from hlap_export.engines.trt.timing_cache import TimingCache
from hlap_export.errors import ArtefactError

if TYPE_CHECKING:
    import tensorrt

_LAYER = re.compile(r"model\.layers\.(\d+)\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledPlan:
    """What came out.

    Attributes:
        seconds: of the build, the parsing included.
        num_network_layers: before the compiler fused anything.
        bindings: the plan's inputs and outputs, as the compiler lists them, or else as the parsed network does.
        log: what it said.
    """

    seconds: float
    num_network_layers: int
    bindings: tuple[str, ...]
    log: Log


def compile_plan(
    library: Library,
    graph: Graph,
    profiles: Sequence[dict[str, ShapeRange]],
    options: TensorRTOptions,
    out: Path,
) -> CompiledPlan:
    """Build one plan file with a profile for each phase, in order.

    Raises:
        ArtefactError: the parser or the compiler refuses the graph; it says at which layer, and why.
    """
    trt, log, started = library.load(), open_log(library), time.perf_counter()
    builder = trt.Builder(log.logger)
    # In TensorRT 10 types are only kept as they are where this is asked for; later ones always do.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(library, network, graph, log)
    config = _config(library, builder, options)
    for shapes in profiles:
        _add_profile(builder, config, shapes)
    cache = TimingCache.of(library)
    cache.load_into(config)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise _refused(graph, library, "builds", log)
    cache.keep_from(config)
    with out.open("wb") as file:
        file.write(memoryview(built))
    return CompiledPlan(
        seconds=round(time.perf_counter() - started, 3),
        num_network_layers=network.num_layers,
        bindings=bindings_of(log.layers) or bindings_of_network(network),
        log=log,
    )


def _parse(library: Library, network: tensorrt.INetworkDefinition, graph: Graph, log: Log) -> None:
    parser = library.load().OnnxParser(network, log.logger)
    if not parser.parse(graph.content, str(graph.path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        log.problems[:] = [f"{error.node_name() or error.node_operator()}: {error.desc()}" for error in errors]
        raise _refused(graph, library, "parses", log)


def _config(library: Library, builder: tensorrt.Builder, options: TensorRTOptions) -> tensorrt.IBuilderConfig:
    trt, config = library.load(), builder.create_builder_config()
    flags = {
        trt.BuilderFlag.TF32: options.tf32,
        trt.BuilderFlag.STRIP_PLAN: options.strip_weights,
        trt.BuilderFlag.WEIGHT_STREAMING: options.weight_streaming,
        trt.BuilderFlag.VERSION_COMPATIBLE: options.version_compatible,
    }
    for flag, is_set in flags.items():
        (config.set_flag if is_set else config.clear_flag)(flag)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.optimisation_level
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.compatibility != "none":
        config.hardware_compatibility_level = {
            "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
            "same_compute_capability": trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY,
        }[options.compatibility]
    target_gpus(library, config, options.compute_capabilities)
    return config


def _add_profile(builder: tensorrt.Builder, config: tensorrt.IBuilderConfig, shapes: dict[str, ShapeRange]) -> None:
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape.least, shape.typical, shape.most)
    index = config.add_optimization_profile(profile)
    assert profile and index >= 0, f"TensorRT doesn't take the shapes {shapes}"


def _refused(graph: Graph, library: Library, verb: str, log: Log) -> ArtefactError:
    said = log.problems[-1] if log.problems else "no reason"
    layer = _LAYER.search(said)
    return ArtefactError(
        where=f"{graph.path}{f', layer {layer[1]}' if layer else ''}",
        expected=f"a graph that {library.compiler} {verb}",
        found=" ".join(said.split())[:400],
        fix=f"`hlap-export lint {graph.path.parent} --target {library.name}` looks for known causes",
    )
