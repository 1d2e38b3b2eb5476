"""Save what was fitted beside a plan, and say so in the plan."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path

from hlap_export.artifacts import file_written_whole
from hlap_export.digests import file_sha256
from hlap_export.plan.fitting import Fitting
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
    names = sorted(fitting.tensors)
    with file_written_whole(path) as partial, partial.open("wb") as file:
        file.write(_header({name: tuple(fitting.tensors[name].shape) for name in names}))
        for name in names:
            file.write(fitting.tensors[name].contiguous().numpy().data)
    fitted = FittedFile(sha256=file_sha256(path), size_bytes=path.stat().st_size, parts=fitting.parts)
    return plan.model_copy(update={"fitted": fitted})


def _header(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """What a safetensors file of such tensors in float32, back to back, begins with."""
    header, offset = dict[str, object](), 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": (offset, end)}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded
