"""Pruning takes the memory of some chunks, not of a shard or a tensor."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.large_models.random_checkpoint import SHAPES, write_random_checkpoint

ROOT = Path(__file__).parent.parent.parent
# One shard of 303 MB, two tensors of which are 123 MB each.
LARGE: dict[str, Any] = SHAPES["llama-300m"] | {
    "vocab_size": 60000,
    "num_hidden_layers": 2,
    "tie_word_embeddings": False,
}
SMALL: dict[str, Any] = LARGE | {"vocab_size": 2048}
# Chunks of 4 MiB that wait for hashing, and one o_proj: 16 MB when measured. Reading tensors whole takes 122 MB.
MAX_GROWTH_BYTES = 60e6


def test_the_peak_is_far_below_a_shard_or_even_its_largest_tensor(tmp_path: Path) -> None:
    large = write_random_checkpoint(tmp_path / "dense_large", LARGE)
    small = write_random_checkpoint(tmp_path / "dense_small", SMALL)
    assert (large / "model.safetensors").stat().st_size > 300e6
    done = subprocess.run(
        [sys.executable, "-m", "tests.prune.peak_memory", str(small), str(large), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < MAX_GROWTH_BYTES
