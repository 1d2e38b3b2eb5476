"""How long a step takes at the least on this machine: counted work over measured speeds.

The speeds are those of float32 matrix products in NumPy, with as many threads as the engines have. A decode step reads
its weights in matrix-vector products, at the speed that buffers of that size are read at: a small model stays in the
CPU's caches, a large one comes from memory every time. An engine can be a little faster than the limit where its
kernels beat NumPy's, and in int8 and int4, whose products the processor computes faster than float32's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import hlap_export
from hlap_export.bench.report import Limit, MachineSpeed, ReadSpeed
from hlap_export.bench.work import Point, Work, step_work
from hlap_export.checkpoint import ModelLayout

# What the BLAS libraries that NumPy may be built with read when they are loaded.
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
TIMEOUT_SECONDS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineShape:
    """What limits are counted from."""

    layout: ModelLayout
    dtype: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Those of one point."""

    candidate: Limit
    baseline: Limit
    ratio: float


def machine_speed(threads: int) -> MachineSpeed | None:
    """Measure this machine, in a process of its own: BLAS takes its number of threads when it is loaded.

    None where that fails or takes too long: limits aren't worth losing what was timed.
    """
    # The package may be used from its source tree, without being installed.
    roots = [str(Path(hlap_export.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "hlap_export.bench.speed_probe"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            env=environment,
            check=True,
        )
    except subprocess.SubprocessError:
        return None
    return MachineSpeed.model_validate(json.loads(done.stdout))


def limits(candidate: EngineShape, baseline: EngineShape, point: Point, speed: MachineSpeed | None) -> Limits:
    """What both engines need for one step, and the ratio that it allows.

    Without a measured speed the ratio is that of the FLOPs of a prefill, or of the bytes of a decode step.
    """
    ours, theirs = (step_work(engine.layout, point, dtype=engine.dtype) for engine in (candidate, baseline))
    mine, other = _limit(ours, speed), _limit(theirs, speed)
    if mine.min_ms is not None and other.min_ms is not None:
        ratio = mine.min_ms / other.min_ms
    else:
        ratio = ours.flops / theirs.flops if point.phase == "prefill" else ours.bytes / theirs.bytes
    return Limits(candidate=mine, baseline=other, ratio=ratio)


def _limit(work: Work, speed: MachineSpeed | None) -> Limit:
    if speed is None:
        return Limit(flops=work.flops, bytes=work.bytes, min_ms=None, bound_by=None)
    computing = work.flops / speed.flops_per_second
    reading = work.bytes / _read_speed(speed.reads, work.bytes)
    return Limit(
        flops=work.flops,
        bytes=work.bytes,
        min_ms=max(computing, reading) * 1e3,
        bound_by="arithmetic" if computing > reading else "memory",
    )


def _read_speed(reads: tuple[ReadSpeed, ...], size: int) -> float:
    """Bytes per second from a buffer of this size, on the line between the nearest measured ones."""
    ordered = sorted(reads, key=lambda read: read.buffer_bytes)
    for smaller, larger in pairwise(ordered):
        if smaller.buffer_bytes <= size <= larger.buffer_bytes:
            way = (size - smaller.buffer_bytes) / (larger.buffer_bytes - smaller.buffer_bytes)
            return smaller.bytes_per_second + way * (larger.bytes_per_second - smaller.bytes_per_second)
    return (ordered[0] if size < ordered[0].buffer_bytes else ordered[-1]).bytes_per_second
