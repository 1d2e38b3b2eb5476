"""Peak memory of an engine, in fresh processes of its own.

In this process it couldn't be told from what torch or another engine has held before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import hlap_export
from hlap_export.artifacts import read_manifest
from hlap_export.bench.report import MemoryRow
from hlap_export.errors import ArtefactError

TIMEOUT_SECONDS = 600
NUM_PROCESSES = 3
"""What an allocator keeps differs from one process to the next."""


def measure_memory(engine: Path, *, prompt_length: int, threads: int, batch: int = 1) -> MemoryRow:
    """Start processes that load the engine, run prompts and one more token of each, and report their peaks.

    Raises:
        ArtefactError: a process failed; the last line that it printed is quoted.
    """
    manifest = read_manifest(engine, kind="engine")
    probed = sorted(
        (_probe(engine, prompt_length, batch, threads) for _ in range(NUM_PROCESSES)),
        key=lambda found: found["peak_rss_bytes"],
    )
    return MemoryRow(
        **probed[NUM_PROCESSES // 2],
        peak_rss_low_bytes=probed[0]["peak_rss_bytes"],
        peak_rss_high_bytes=probed[-1]["peak_rss_bytes"],
        engine_file_bytes=sum(record.size_bytes for record in manifest.files.values()),
        weight_bytes=manifest.facts.get("weight_bytes"),
    )


def _probe(engine: Path, prompt_length: int, batch: int, threads: int) -> dict[str, int]:
    sizes = (str(prompt_length), str(batch), str(threads))
    command = [sys.executable, "-m", "hlap_export.bench.memory_probe", str(engine), *sizes]
    # The package may be used from its source tree, without being installed.
    roots = [str(Path(hlap_export.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=True
        )
    except subprocess.TimeoutExpired as error:
        found = f"not done after {error.timeout:.0f} s"
    except subprocess.CalledProcessError as error:
        found = (str(error.stderr).strip().splitlines() or [f"exit code {error.returncode}"])[-1][:300]
    else:
        return json.loads(done.stdout)
    raise ArtefactError(
        where=str(engine),
        expected=f"an engine that runs {batch} x {prompt_length} tokens in a process of its own",
        found=found,
        fix="free some memory or shorten the prompt; if it is neither, build the engine again",
    )
