"""What TensorRT-RTX alone has: engines for GPUs that the building machine lacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from hlap_export.engines.trt.library import TENSORRT_RTX, Library
from hlap_export.errors import ArtefactError

if TYPE_CHECKING:
    import tensorrt
    import tensorrt_rtx


def target_gpus(library: Library, config: tensorrt.IBuilderConfig, compute_capabilities: Sequence[str]) -> None:
    """Restrict a build to GPUs such as "SM89"; none for all that the library can.

    Raises:
        ArtefactError: a GPU that the library doesn't know, or a library that builds for its own GPU.
    """
    if not compute_capabilities:
        return
    if library != TENSORRT_RTX:
        raise _not_there(library, compute_capabilities, "none: it builds for the GPU of this machine")
    # TensorRT's stubs don't have it.
    known = cast("dict[str, tensorrt_rtx.ComputeCapability]", vars(library.load())["ComputeCapability"].__members__)
    if unknown := [name for name in compute_capabilities if name not in known]:
        raise _not_there(library, unknown, f"among {', '.join(name for name in known if name.startswith('SM'))}")
    rtx_config = cast("tensorrt_rtx.IBuilderConfig", config)
    rtx_config.num_compute_capabilities = len(compute_capabilities)
    for index, name in enumerate(compute_capabilities):
        rtx_config.set_compute_capability(known[name], index)


def execution_context(library: Library, plan: tensorrt.ICudaEngine) -> tensorrt.IExecutionContext:
    """A context of a plan; TensorRT-RTX, which compiles kernels as they are needed, is told to record by itself."""
    if library != TENSORRT_RTX:
        return plan.create_execution_context()
    config = cast("tensorrt_rtx.IRuntimeConfig", plan.create_runtime_config())
    strategies = vars(library.load())["CudaGraphStrategy"]
    config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE
    return plan.create_execution_context(cast("tensorrt.IRuntimeConfig", config))


def _not_there(library: Library, asked: Sequence[str], expected: str) -> ArtefactError:
    return ArtefactError(
        where="TensorRT option compute_capabilities",
        expected=f"for {library.name}, {expected}",
        found=", ".join(asked),
        fix="correct it in the recipe's section `tensorrt`, or leave it out",
    )
