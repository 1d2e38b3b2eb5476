"""Save what was fitted beside a plan, and say so in the plan."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save

from hlap_export.artifacts import file_written_whole
from hlap_export.digests import file_sha256
from hlap_export.plan.fitting import Fitting
from hlap_export.plan.pruning_plan import FittedFile, PruningPlan


def save_fitted(fitting: Fitting, plan: PruningPlan, path: Path) -> PruningPlan:
    """Write the side file by rename, so that a kill never leaves half of it: the plan that names it by its digest.

    Args:
        fitting: of this plan.
        plan: the plan.
        path: where `side_file_of` the plan's own file says.

    Raises:
        OutputError: the disk is full.
    """
    with file_written_whole(path) as partial:
        partial.write_bytes(save(dict(sorted(fitting.tensors.items()))))
    fitted = FittedFile(sha256=file_sha256(path), size_bytes=path.stat().st_size, parts=fitting.parts)
    return plan.model_copy(update={"fitted": fitted})
