"""Save what was fitted beside a plan, and say so in the plan."""

from __future__ import annotations

from pathlib import Path

import torch

from hlap_export.artifacts import file_written_whole
from hlap_export.checkpoint.shards import Computed, OutputTensor, write_shard
from hlap_export.digests import file_sha256
from hlap_export.plan.fitting import Fitting
from hlap_export.plan.layer_halves import Tensors
from hlap_export.plan.pruning_plan import FittedFile, PruningPlan


def save_fitted(fitting: Fitting, plan: PruningPlan, path: Path) -> PruningPlan:
    """Write the side file, a tensor at a time, and by rename, so that a kill never leaves half of it.

    Returns the plan that names it by its digest.

    Args:
        fitting: of this plan.
        plan: the plan.
        path: where `side_file_of` the plan's own file says.

    Raises:
        OutputError: the disk is full.
    """
    outputs = [_output(name, fitting.tensors) for name in sorted(fitting.tensors)]
    with file_written_whole(path) as partial, partial.open("wb") as file:
        for _ in write_shard(file, outputs, {}):
            pass
    fitted = FittedFile(
        sha256=file_sha256(path), size_bytes=path.stat().st_size, parts=fitting.parts, tuning=fitting.tuning
    )
    return plan.model_copy(update={"fitted": fitted})


def _output(name: str, tensors: Tensors) -> OutputTensor:
    tensor = tensors[name]
    data = Computed(compute=lambda: tensors[name], dtype=torch.float32)  # read again when its turn comes
    return OutputTensor(name=name, dtype="F32", shape=tuple(tensor.shape), size_bytes=tensor.nbytes, data=data)
