"""Prune two checkpoints, and print by how many bytes the second one raised the process's memory at its peak.

python -m tests.prune.peak_memory SMALL LARGE OUT
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from hlap_export.checkpoint import read_layout
from hlap_export.plan.pruning_plan import plan_of_alphas
from hlap_export.prune import prune

PROCESS = Path("/proc/self")


def memory_bytes(field: str) -> int:
    """`VmRSS`, the process's memory now, or `VmHWM`, its peak."""
    found = re.search(rf"{field}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def forget_peak() -> None:
    """Start the peak anew: that of the imports is higher than all that follows."""
    (PROCESS / "clear_refs").write_text("5")


def prune_top_half(model: Path, out: Path) -> None:
    layout = read_layout(model)
    alphas = dict.fromkeys(range(layout.num_layers // 2, layout.num_layers), 0.5)
    prune(model, plan_of_alphas(layout, alphas, method="fixed"), out)


if __name__ == "__main__":
    small, large, folder = (Path(argument) for argument in sys.argv[1:])
    prune_top_half(small, folder / "small")  # imports what every prune needs
    forget_peak()
    before = memory_bytes("VmRSS")
    prune_top_half(large, folder / "large")
    print(memory_bytes("VmHWM") - before)
