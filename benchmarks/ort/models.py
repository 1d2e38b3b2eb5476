"""Which models are timed, at which lengths: the reference model, and random ones of about 30 M and 300 M parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.large_models.random_checkpoint import SHAPES, write_random_checkpoint
from hlap_export import reference_model
from hlap_export.bench.work import Point
from hlap_export.checkpoint import ModelLayout

REFERENCE = "reference"
MODELS = (REFERENCE, "llama-30m", "llama-300m")
# Tables of rotary angles have a row for each position: no more of them than are timed.
MAX_POSITIONS = 32768

PREFILL_LENGTHS = (512, 2048, 8192)
CONTEXT_LENGTHS = (512, 2048, 4096, 8192, 16384)
# Contexts at which a decode step is timed, and the most tokens between them: 1 KiB of the attention's scratch. So the
# four of them span a page of memory, and a head's output lies across two pages at one or two of them.
NUM_CONTEXTS, MAX_STRIDE = 4, 256


def checkpoint_of(name: str, work: Path) -> Path:
    """The model's dense checkpoint; a random one is written below `work`, the same in every run."""
    if name == REFERENCE:
        return reference_model.path()
    folder = work / name
    if not folder.is_dir():
        write_random_checkpoint(folder, SHAPES[name] | {"max_position_embeddings": MAX_POSITIONS})
    return folder


def points_of(layout: ModelLayout, prompts: Sequence[int], contexts: Sequence[int]) -> tuple[Point, ...]:
    """The points that the model has positions for; a context of all its positions loses one to the new token."""
    limit = layout.max_positions
    prefills = [Point(phase="prefill", num_tokens=length) for length in prompts if length <= limit]
    decodes = [Point(phase="decode", num_tokens=min(length, limit - 1)) for length in contexts if length <= limit]
    return (*prefills, *decodes)


def lengths_of(point: Point) -> tuple[int, ...]:
    """The prompt's length, or the contexts up to `num_tokens` at which a decode step is timed."""
    if point.phase == "prefill":
        return (point.num_tokens,)
    stride = min(MAX_STRIDE, point.num_tokens // (2 * NUM_CONTEXTS))
    return tuple(point.num_tokens - stride * number for number in range(NUM_CONTEXTS))
