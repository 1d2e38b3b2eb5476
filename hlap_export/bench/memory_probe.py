"""Run in a fresh process by `memory`: load an engine, run it once, print its peak memory as JSON.

python -m hlap_export.bench.memory_probe ENGINE_DIR PROMPT_LENGTH BATCH THREADS
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

from hlap_export.artifacts import read_manifest
from hlap_export.bench.steps import decode_step, prefill_step
from hlap_export.engines import open_session
from hlap_export.engines.base import ITEMSIZE_BYTES, kv_bytes_per_token
from hlap_export.engines.build import usable_backend


def probe(engine: Path, prompt_length: int, batch: int, threads: int) -> dict[str, int]:
    """Peak memory before and after one prefill and one decode step."""
    # Asking for the backend imports its library, so that the difference of the two readings is the engine's own.
    usable_backend(str(read_manifest(engine, kind="engine").parameters["engine"]))
    before = peak_rss_bytes()
    with open_session(engine, threads=threads) as session:
        prefill_step(session, prompt_length, batch=batch, seed=0)()
        decode_step(session, prompt_length, batch=batch, seed=0)()
        bytes_per_token = kv_bytes_per_token(session.kv_layers, ITEMSIZE_BYTES[session.dtype])
    return {
        "peak_rss_bytes": peak_rss_bytes(),
        "rss_before_load_bytes": before,
        "kv_bytes_per_token": bytes_per_token,
    }


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        # ru_maxrss of a child starts at its parent's on Linux; VmHWM begins anew.
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    json.dump(probe(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:])), sys.stdout)
