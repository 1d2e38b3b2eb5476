"""How much verify checks, and how much of it fits into what the model and the engine can hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hlap_export.artifacts import Manifest
from hlap_export.checkpoint.layout import ModelLayout

LONGEST_CONTEXT = 2048
"""Tokens: as far as the long context goes unless more is asked for, which the reference needs long for."""

CONTEXT_STEPS = 16
"""Tokens at the end of the long context that are decoded step by step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """How much is checked.

    Attributes:
        windows: evaluation windows, spread evenly over the text.
        window_length: tokens in each.
        prompt_lengths: real tokens in each row of the left-padded batch; the first row is also run alone.
        decode_steps: teacher-forced steps through the cache after the prompt, fewer where the model ends before.
        context_length: tokens of a long row whose end is checked, fewer where the model or the engine ends before;
            None for `LONGEST_CONTEXT`.
        bisect: whether each layer's own error is measured even if every check passes.
        dense: the dense checkpoint, if the reference was pruned from it: its folded layers are checked against that.
        threads: CPU threads of the engines; None takes every usable core.
        seed: of the random ids, where there is no text or no tokenizer.
        tokenizer: folder whose tokenizer reads the text; None takes the engine's own.
        trust_remote_code: whether a tokenizer class that this folder brings along may be executed.
        max_memory: most bytes of RAM for the whole process while the reference is computed; its layers that don't fit
            are loaded one at a time. None for what the machine has free.
    """

    windows: int = 32
    window_length: int = 256
    prompt_lengths: tuple[int, ...] = (48, 29, 3)
    decode_steps: int = 128
    context_length: int | None = None
    bisect: bool = False
    dense: Path | None = None
    threads: int | None = None
    seed: int = 0
    tokenizer: Path | None = None
    trust_remote_code: bool = False
    max_memory: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """The sequences of one verification.

    Attributes:
        prompt_lengths: of the parity rows.
        decode_steps: after each of them.
        context_length: tokens of the long row; 0 for none, because it wouldn't be longer than the others.
        limit: tokens that both the model and the engine can hold.
    """

    prompt_lengths: tuple[int, ...]
    decode_steps: int
    context_length: int
    limit: int

    @property
    def parity_tokens(self) -> int:
        """Tokens of all parity rows."""
        return sum(self.prompt_lengths) + len(self.prompt_lengths) * self.decode_steps

    def as_fields(self) -> dict[str, Any]:
        """As the report names them."""
        return {
            "prompt_lengths": self.prompt_lengths,
            "num_decode_steps": self.decode_steps,
            "context_length": self.context_length,
            "context_limit": self.limit,
        }


def fit_lengths(options: VerifyOptions, layout: ModelLayout, engine: Manifest) -> Lengths:
    """Shorten what is asked for to the model's positions and to the engine's capacity and batch, where it has one."""
    sizes = engine.parameters
    limit = min(layout.max_positions, int(sizes.get("capacity", layout.max_positions)))
    prompts = tuple(min(length, max(1, limit // 2)) for length in options.prompt_lengths)
    prompts = prompts[: int(sizes.get("max_batch", len(prompts)))]
    steps = min(options.decode_steps, limit - max(prompts))
    context = min(limit, options.context_length or LONGEST_CONTEXT)
    is_longer = context > max(prompts) + steps and context > CONTEXT_STEPS
    return Lengths(prompt_lengths=prompts, decode_steps=steps, context_length=context if is_longer else 0, limit=limit)
