"""Where the two libraries differ: TensorRT-RTX builds for GPUs that the building machine lacks, and lacks options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from hlap_export.engines.base import Unavailable
from hlap_export.engines.trt.library import TENSORRT, TENSORRT_RTX, Library, why_no_gpu
from hlap_export.engines.trt.options import TensorRTOptions
from hlap_export.errors import ArtefactError
from hlap_export.machine import first_nvidia_gpu

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx


def require_possible(library: Library, options: TensorRTOptions) -> None:
    """Refuse what a library has under another name, or not here, before it does in words of its own.

    Raises:
        ArtefactError: such an option.
    """
    if library != TENSORRT_RTX:
        return
    if options.version_compatible:
        raise _not_there(library, "version_compatible", "false: its plans run with the version that built them", "true")
    if options.compatibility != "none":
        raise _not_there(
            library, "compatibility", "none: compute_capabilities says which GPUs it builds for", options.compatibility
        )
    if options.strip_weights and (problem := why_no_gpu()):
        raise _not_there(
            library, "strip_weights", "false without a GPU, which its compiler then needs", f"true, but {problem.found}"
        )


def why_not_this_gpu(library: Library, options: TensorRTOptions) -> Unavailable | None:
    """Why TensorRT-RTX can't run on this machine's GPU what it builds with these options; None if it can."""
    gpu = first_nvidia_gpu() if library == TENSORRT_RTX else None
    if gpu is None:
        return None
    here = f"this machine's GPU ({gpu.name}) is {gpu.compute_capability}"
    known = [target for target in _compute_capabilities(library) if target.startswith("SM")]
    if gpu.compute_capability not in known:
        return Unavailable(
            found=f"{here}, and {library.compiler} runs on {', '.join(known)} alone",
            fix="use --engine tensorrt here, or a machine with one of NVIDIA's RTX GPUs",
        )
    if options.compute_capabilities and gpu.compute_capability not in options.compute_capabilities:
        return Unavailable(
            found=f"{here}, and compute_capabilities are {', '.join(options.compute_capabilities)}",
            fix="add it to compute_capabilities in the recipe's section `tensorrt`",
        )
    return None


def building_gpu(library: Library, options: TensorRTOptions) -> dict[str, str]:
    """The GPU that decides a plan's bytes, as a parameter of it; empty where plans are for any."""
    gpu = first_nvidia_gpu() if library == TENSORRT else None
    if gpu is None or options.compatibility == "ampere_plus":
        return {}
    kind = gpu.compute_capability
    return {"gpu": kind if options.compatibility == "same_compute_capability" else f"{gpu.name} ({kind})"}


def target_gpus(library: Library, config: tensorrt.IBuilderConfig, compute_capabilities: Sequence[str]) -> None:
    """Restrict a build to GPUs such as "SM89"; none for all that the library can.

    Raises:
        ArtefactError: a GPU that the library doesn't know, or a library that builds for its own GPU.
    """
    if not compute_capabilities:
        return
    name = "compute_capabilities"
    if library != TENSORRT_RTX:
        raise _not_there(library, name, "none: it builds for the GPU of this machine", ", ".join(compute_capabilities))
    known = _compute_capabilities(library)
    targets = [target for target in known if target.startswith("SM")]
    if unknown := [target for target in compute_capabilities if target not in targets]:
        raise _not_there(library, name, f"among {', '.join(targets)}", ", ".join(unknown))
    rtx_config = cast("tensorrt_rtx.IBuilderConfig", config)
    rtx_config.num_compute_capabilities = len(compute_capabilities)
    for index, target in enumerate(compute_capabilities):
        rtx_config.set_compute_capability(known[target], index)


def execution_context(
    library: Library, plan: tensorrt.ICudaEngine, *, records: bool
) -> tensorrt.IExecutionContext | None:
    """A context of a plan; None where the GPU has no room for it.

    TensorRT-RTX, which compiles kernels as they are needed, `records` steps by itself.
    """
    if library != TENSORRT_RTX or not records:
        return plan.create_execution_context()
    config = cast("tensorrt_rtx.IRuntimeConfig", plan.create_runtime_config())
    strategies = vars(library.load())["CudaGraphStrategy"]
    config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
    return plan.create_execution_context(cast("tensorrt.IRuntimeConfig", config))


def _compute_capabilities(library: Library) -> dict[str, tensorrt_rtx.ComputeCapability]:
    """By name; TensorRT's stubs don't have them."""
    return cast("dict[str, tensorrt_rtx.ComputeCapability]", vars(library.load())["ComputeCapability"].__members__)


def _not_there(library: Library, option: str, expected: str, found: str) -> ArtefactError:
    return ArtefactError(
        where=f"TensorRT option {option}",
        expected=f"for {library.name}, {expected}",
        found=found,
        fix="correct it in the recipe's section `tensorrt`, or leave it out",
    )
