"""Fit and judge plans, and print by how many bytes that raised the process's memory at its peak.

python -m tests.plan.peak_memory WHAT MODEL NUM_WINDOWS

WHAT is "judge", for windows through a model with one attention less, or the form of a map for its last layer. A tiny
model of two windows goes first: imports and pools take more than what follows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from hlap_export.checkpoint import read_layout
from hlap_export.plan.calibration import Windows
from hlap_export.plan.judging import window_losses
from hlap_export.plan.layer_plan import RefitMlp, Skip, linear_of
from hlap_export.plan.methods.base import with_attention
from hlap_export.plan.records import TextWindows
from hlap_export.plan.searching import open_workbench
from tests.prune.peak_memory import forget_peak, memory_bytes
from tests.tiny import save_tiny

WINDOW_LENGTH = 129


def windows(count: int) -> Windows:
    ids = torch.randint(1, 90, (count, WINDOW_LENGTH), generator=torch.Generator().manual_seed(0))
    text = TextWindows(name="random", sha256="0" * 64, num_windows=count, window_length=WINDOW_LENGTH)
    return Windows(ids=ids, text=text)


def growth_bytes(what: Any, model: Path, num_windows: int, work: Path) -> int:
    """What fitting or judging raises the memory by, once the model is open."""
    layout, few = read_layout(model), windows(8)
    bench = open_workbench(model, (few, few), work=work)
    last = layout.num_layers - 1
    judged = windows(num_windows)
    forget_peak()
    before = memory_bytes("VmRSS")
    if what == "judge":
        plan = with_attention(bench.dense, last, Skip())
        window_losses(bench.search.decoder, layout.family, plan, {}, judged)
    else:
        plan = with_attention(bench.dense, last, linear_of("full", layout))
        bench.fitting(plan.model_copy(update={"mlp": {last: RefitMlp()}} if what == "mlp" else {}))
    return memory_bytes("VmHWM") - before


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        save_tiny(Path(folder) / "tiny", "mistral", max_position_embeddings=256)
        growth_bytes(sys.argv[1], Path(folder) / "tiny", 2, Path(folder) / "small")
        print(growth_bytes(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(folder) / "large"))
