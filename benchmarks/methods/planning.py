"""What `plan` itself takes, its comparison with HARP included: seconds and peak memory, in a process of its own.

    python -m benchmarks.methods.planning MODEL METHOD NUM_LAYERS

It prints JSON. Nothing here may load a framework (see `benchmarks/large_models/measured.py`), hence the two processes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.large_models.measured import measure

TUNED, TUNE_EPOCHS = ", tuned", 6
"""A method's name ends so where what it fits is tuned, for so long."""


def planning_cost(model: Path, method: str, num_layers: int) -> dict[str, Any]:
    """Seconds and peak memory of planning; `method` as the benchmark names it: "choose-fit by loss"."""
    command = [sys.executable, "-m", "benchmarks.methods.planning", str(model), method, str(num_layers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    model, named, num_layers = sys.argv[1:]
    method, _, choose_by = named.removesuffix(TUNED).partition(" by ")
    with TemporaryDirectory() as work:
        folder = Path(work, "out")
        folder.mkdir()
        command = [sys.executable, "-m", "hlap_export.cli", "plan", model, "--method", method]
        command += ["--num-layers", num_layers, "--out", str(folder / "plan.json")]
        command += ["--choose-by", choose_by] if choose_by else []
        command += ["--tune", str(TUNE_EPOCHS)] if named.endswith(TUNED) else []
        taken = asdict(measure(command, watch=folder, log=Path(work, "log.txt")))
    print(json.dumps({name: taken[name] for name in ("seconds", "cpu_seconds", "peak_rss_bytes")}))


if __name__ == "__main__":
    main()
