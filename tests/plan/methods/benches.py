"""Workbenches over tiny models, and the same measured naively: the whole dense model, masked, for every candidate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hlap_export.checkpoint import read_layout
from hlap_export.checkpoint.decoder import open_decoder
from hlap_export.on_progress import Steps, ignore_progress
from hlap_export.plan.calibration import Search, Windows
from hlap_export.plan.fitting import FitOptions
from hlap_export.plan.journal import Journal
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.records import TextWindows
from hlap_export.plan.states import StateFiles
from hlap_export.plan.workbench import Workbench
from tests.masked_dense import NO_WEIGHTS, Weights, masked
from tests.tiny import VOCAB_SIZE, tiny_model


def windows(count: int, *, seed: int, length: int = 25) -> Windows:
    ids = torch.randint(1, VOCAB_SIZE, (count, length), generator=torch.Generator().manual_seed(seed))
    return Windows(ids=ids, text=TextWindows(name="random", sha256="0" * 64, num_windows=count, window_length=length))


FITTED_ON, JUDGED_BY = windows(8, seed=2), windows(5, seed=3)


def save_eager(folder: Path, model_type: str, *, seed: int = 0) -> tuple[Path, Any]:
    """A tiny checkpoint, and the model in eager attention."""
    model = tiny_model(model_type, seed=seed)
    model.save_pretrained(folder / "dense")
    model.set_attn_implementation("eager")
    return folder / "dense", model


def open_bench(checkpoint: Path, *, work: str = "work", plans: Steps | None = None) -> Workbench:
    """A workbench over the checkpoint."""
    layout, folder = read_layout(checkpoint), checkpoint.parent / work
    search = Search(
        decoder=open_decoder(checkpoint, batch=FITTED_ON.batch),
        windows=FITTED_ON,
        states=StateFiles(folder, length=FITTED_ON.batch.length, hidden_size=layout.hidden_size),
        journal=Journal(folder, "a test"),
        steps=Steps(0, ignore_progress),
    )
    return Workbench(search, JUDGED_BY, layout, FitOptions(), plans or Steps(0, ignore_progress))


def naive_loss(model: Any, plan: PruningPlan, of: Windows = FITTED_ON, fitted: Weights = NO_WEIGHTS) -> float:
    """Nats per token of the masked dense model."""
    with masked(model, plan, fitted), torch.no_grad():
        logits = model(input_ids=of.inputs, use_cache=False).logits.double()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), of.targets.flatten()))
