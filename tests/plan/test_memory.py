"""Fits take what the budget says, and judging takes no more for more text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hlap_export.checkpoint import read_layout
from hlap_export.plan.fit_memory import fit_bytes
from tests.tiny import save_tiny

ROOT = Path(__file__).parent.parent.parent
# One batch with a layer's activations, in float64 too where they are summed, and a block of the head: 50 to 70 MB when
# measured, while a fit's own grew as counted.
BATCH_BYTES = 100e6


def growth_bytes(what: str, model: Path, num_windows: int) -> int:
    done = subprocess.run(
        [sys.executable, "-m", "tests.plan.peak_memory", what, str(model), str(num_windows)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def wide_model(folder: Path, **sizes: Any) -> Path:
    return save_tiny(folder / "wide", "mistral", num_hidden_layers=2, max_position_embeddings=256, **sizes)


@pytest.mark.parametrize("refit", ["none", "mlp"])
def test_a_fit_takes_no_more_than_the_budget_says(refit: Any, tmp_path: Path) -> None:
    model = wide_model(tmp_path, hidden_size=1024, intermediate_size=1536)
    expected = fit_bytes(read_layout(model), refit)
    growth = growth_bytes("mlp" if refit == "mlp" else "full", model, 8)
    assert 0.4 * expected < growth < expected + BATCH_BYTES


def test_judging_by_more_windows_than_a_batch_takes_no_more_memory(tmp_path: Path) -> None:
    model = wide_model(tmp_path, hidden_size=512, intermediate_size=128)
    # The residual streams of all windows are 134 MB, and a layer's are held twice.
    assert growth_bytes("judge", model, 512) < BATCH_BYTES
