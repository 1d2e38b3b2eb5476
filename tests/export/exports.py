"""Exports of the tiny models: made once per session, read by many tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hlap_export.checkpoint import read_layout
from hlap_export.export import MODEL_FILE, export
from hlap_export.prune import prune
from tests.plans import save_tiny_fitted, tiny_plan
from tests.tiny import save_tiny

GOLDEN_PLANS = ("dense", "suffix", "partial_heads")
GOLDEN_FLAVOURS = {"portable": "float32", "ort": "float32", "trt": "float16"}
"""And the dtype that shows each one's operators: there are no fused attention kernels for float32 in TensorRT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyExport:
    """A tiny checkpoint and what was exported from it."""

    family: str
    plan: str
    dtype: str
    checkpoint: Path
    folder: Path

    @property
    def model_file(self) -> Path:
        return self.folder / MODEL_FILE


class TinyExports:
    """Makes an export when it is first asked for, below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._made: dict[tuple[str, ...], TinyExport] = {}

    def get(self, family: str, plan: str = "dense", dtype: str = "float32", flavour: str = "portable") -> TinyExport:
        key = (family, plan, dtype, flavour)
        if key not in self._made:
            checkpoint = tiny_checkpoint(self.root, family, plan)
            folder = self.root / "-".join(("export", *key))
            export(checkpoint, folder, flavour=flavour, dtype=dtype)
            self._made[key] = TinyExport(family=family, plan=plan, dtype=dtype, checkpoint=checkpoint, folder=folder)
        return self._made[key]


def tiny_checkpoint(root: Path, family: str, plan: str) -> Path:
    """The tiny model of a family, pruned by a plan unless that is "dense"."""
    dense, pruned = root / f"{family}-dense", root / f"{family}-{plan}"
    if not dense.exists():
        save_tiny(dense, family)
        for companion in ("tokenizer.json", "tokenizer_config.json", "modeling_own.py"):
            (dense / companion).write_text("{}")
    if not pruned.exists():
        made, side_file = tiny_plan(plan, read_layout(dense)), root / f"{family}-{plan}.safetensors"
        if made.fits:
            made = save_tiny_fitted(made, read_layout(dense), side_file)
        prune(dense, made, pruned, fitted=side_file)
    return pruned
