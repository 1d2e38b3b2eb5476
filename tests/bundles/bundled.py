"""Engines of the tiny models with a tokenizer that reads text, and what onnxruntime-genai writes with their bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from hlap_export.bundles import bundle
from hlap_export.bundles.genai_trial import PROBE
from hlap_export.checkpoint import load_model
from tests.tiny import VOCAB_SIZE
from tests.tiny_engines import TinyEngines, altered

EOS = 0  # of every tiny model


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyBundle:
    """A tiny checkpoint, its engine and its bundle."""

    checkpoint: Path
    engine: Path
    folder: Path


class TinyBundles:
    """Makes a bundle when it is first asked for, below `root`."""

    def __init__(self, root: Path, engines: TinyEngines) -> None:
        self._root = root
        self._engines = engines
        self._made: dict[tuple[str, ...], TinyBundle] = {}

    def get(self, *key: str) -> TinyBundle:
        """The bundle of the engine that `TinyEngines.get(*key)` gives."""
        if key not in self._made:
            made = self._engines.get(*key)
            engine = altered(made.folder, self._root / "-".join(("readable", *key)), add_tokenizer)
            folder = self._root / "-".join(("bundle", *key))
            bundle(engine, folder)
            self._made[key] = TinyBundle(checkpoint=made.checkpoint, engine=engine, folder=folder)
        return self._made[key]


def add_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer, as large models have one, with as few tokens as the tiny models have.

    Words are split as Qwen2 does: transformers does so for that family whatever tokenizer.json says.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator([PROBE, "import json, read and return the file"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)


def genai_tokens(folder: Path, *chunks: Any, max_length: int = 40) -> list[list[int]]:
    """What onnxruntime-genai goes on with, greedily, row by row, after chunks of prompts [B, T]."""
    params = onnxruntime_genai.GeneratorParams(model := onnxruntime_genai.Model(str(folder)))
    batch = len(chunks[0])
    params.set_search_options(max_length=max_length, batch_size=batch)
    generator = onnxruntime_genai.Generator(model, params)
    for chunk in chunks:
        generator.append_tokens(np.asarray(chunk, dtype=np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    length = sum(len(chunk[0]) for chunk in chunks)
    return [up_to_stop([int(token) for token in generator.get_sequence(row)[length:]]) for row in range(batch)]


def transformers_tokens(checkpoint: Path, prompt: Sequence[int], max_length: int = 40) -> list[int]:
    """What transformers goes on with, greedily."""
    model: Any = load_model(checkpoint, dtype=torch.float32)
    ids = torch.tensor([list(prompt)])
    mask = torch.ones_like(ids)
    written = model.generate(ids, attention_mask=mask, max_length=max_length, do_sample=False, pad_token_id=EOS)
    return up_to_stop(written[0, len(prompt) :].tolist())


def up_to_stop(tokens: list[int]) -> list[int]:
    """The tokens before the first stop token, which one of the two reports and the other doesn't."""
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens
