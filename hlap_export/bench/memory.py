"""Peak memory of an engine, in a fresh process of its own.

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


def measure_memory(engine: Path, *, prompt_length: int, threads: int, batch: int = 1) -> MemoryRow:
    """Start a process that loads the engine, runs prompts and one more token of each, and reports its peak.

    Raises:
        ArtefactError: the process failed; the last line that it printed is quoted.
    """
    manifest = read_manifest(engine, kind="engine")
    sizes = (str(prompt_length), str(batch), str(threads))
    command = [sys.executable, "-m", "hlap_export.bench.memory_probe", str(engine), *sizes]
    # The package may be used from its source tree, without being installed.
    roots = [str(Path(hlap_export.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment, check=False
    )
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise ArtefactError(
            where=str(engine),
            expected=f"an engine that runs {batch} x {prompt_length} tokens in a process of its own",
            found=said[-1][:300],
            fix="free some memory or shorten the prompt; if it is neither, build the engine again",
        )
    return MemoryRow(
        **json.loads(done.stdout),
        engine_file_bytes=sum(record.size_bytes for record in manifest.files.values()),
        weight_bytes=manifest.facts.get("weight_bytes"),
    )
