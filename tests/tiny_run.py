"""A tiny checkpoint with a tokenizer, and recipes that run the whole pipeline on it in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hlap_export import reference_model
from hlap_export.pipeline import run
from hlap_export.recipe import BenchSection, PlanSection, Recipe, VerifySection
from hlap_export.report.summary import Summary
from tests.tiny import VOCAB_SIZE, save_tiny


def save_tiny_with_tokenizer(folder: Path, family: str = "llama", **arguments: object) -> Path:
    """Write a tiny random checkpoint that reads text, and return its folder."""
    save_tiny(folder, family, **arguments)
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=["<unk>"], limit_alphabet=60)
    tokenizer.train_from_iterator([reference_model.calibration_text().read_text()[:20_000]], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run of the whole pipeline on a tiny model."""

    model: Path
    out: Path
    summary: Summary


def finish_tiny_run(root: Path) -> FinishedRun:
    model = save_tiny_with_tokenizer(root / "model")
    return FinishedRun(model=model, out=root / "out", summary=run(model, root / "out", recipe=TINY_RECIPE))


TINY_RECIPE = Recipe(
    plan=PlanSection(num_layers=2, windows=3, window_length=32),
    verify=VerifySection(windows=3, window_length=32),
    bench=BenchSection(prompt_lengths=(8,), context_lengths=(8,), repeats=5),
)
