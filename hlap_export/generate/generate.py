"""The generate stage: an engine goes on with a prompt, or answers in a chat, while someone reads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from hlap_export.artifacts import read_manifest
from hlap_export.checkpoint import read_layout
from hlap_export.checkpoint.generation_config import read_generation_defaults
from hlap_export.engines import open_session
from hlap_export.engines.base import Ints
from hlap_export.errors import ArtefactError, RecipeError, TextError
from hlap_export.generate.prompts import Message, Prompts
from hlap_export.generate.sampling import Sampling, chooser
from hlap_export.generate.tokens import token_stream

DEFAULT_NEW_TOKENS = 256
OnText = Callable[[str], object]
Ending = Literal["stop_token", "max_new_tokens", "longest_context"]


def ignore_text(text: str) -> None:
    """Tell nobody."""


class Generation(BaseModel):
    """A text that an engine wrote, and how fast.

    Attributes:
        text: what follows the prompt, without special tokens.
        token_ids: the new tokens, the one that ended the text included.
        ended_by: a stop token of the model, the number of tokens asked for, or the model's longest context.
        first_token_ms: from the prompt's tokens to the first new one.
        decode_tokens_per_second: of the tokens after the first; None where there is but one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["hlap-export/generation/1"] = "hlap-export/generation/1"
    engine: str
    text: str
    token_ids: tuple[int, ...]
    ended_by: Ending
    num_prompt_tokens: int
    first_token_ms: float
    decode_tokens_per_second: float | None


def generate(
    engine_dir: Path,
    prompt: str,
    *,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    sampling: Sampling | None = None,
    chat: bool = False,
    on_text: OnText = ignore_text,
) -> Generation:
    """Let an engine go on with a prompt.

    Args:
        engine_dir: what `build` wrote, with a tokenizer in it.
        prompt: the text to go on with; with `chat`, what a person says.
        max_new_tokens: at most so many.
        sampling: how tokens are chosen; None takes the likeliest each time.
        chat: put the prompt into the model's chat template.
        on_text: told of each new piece of text, as soon as whole words are there.

    Raises:
        ArtefactError: the folder isn't an engine, or has no chat template.
        BackendMissing: the engine can't run here.
        CheckpointError: no tokenizer.
        TextError: a prompt of no tokens, or of more than the model takes.
        RecipeError: `max_new_tokens` below 1.
    """
    with Generator(engine_dir, sampling=sampling or Sampling()) as generator:
        if chat:
            return generator.answer([{"role": "user", "content": prompt}], max_new_tokens, on_text)
        return generator.go_on(prompt, max_new_tokens, on_text)


class Generator:
    """A loaded engine with its tokenizer, for more than one prompt; use it in a `with` block.

    Args:
        engine_dir: what `build` wrote, with a tokenizer in it.
        sampling: how tokens are chosen.
    """

    def __init__(self, engine_dir: Path, *, sampling: Sampling) -> None:
        read_manifest(engine_dir, kind="engine")
        self._engine_dir = engine_dir
        self._prompts = Prompts(engine_dir)
        self._stop_ids = frozenset(read_generation_defaults(engine_dir).eos_token_ids)
        self._longest = read_layout(engine_dir).max_positions
        self._choose = chooser(sampling)
        self._session = open_session(engine_dir)

    def go_on(self, text: str, max_new_tokens: int = DEFAULT_NEW_TOKENS, on_text: OnText = ignore_text) -> Generation:
        """Go on with a text."""
        return self._generate(self._prompts.of_text(text), max_new_tokens, on_text)

    def answer(
        self, messages: Sequence[Message], max_new_tokens: int = DEFAULT_NEW_TOKENS, on_text: OnText = ignore_text
    ) -> Generation:
        """Answer the last message of a chat."""
        return self._generate(self._prompts.of_chat(messages), max_new_tokens, on_text)

    def _generate(self, prompt_ids: Ints, max_new_tokens: int, on_text: OnText) -> Generation:
        self._require_known(prompt_ids)
        room = self._room_for(prompt_ids, max_new_tokens)
        stream = token_stream(self._session, prompt_ids, self._choose, max_new_tokens=room, stop_ids=self._stop_ids)
        writer, token_ids, finished_at = self._prompts.writer(on_text), list[int](), [time.perf_counter()]
        for token in stream:
            finished_at.append(time.perf_counter())
            token_ids.append(token)
            writer.write(token)
        writer.end()
        decode_seconds = finished_at[-1] - finished_at[1]
        return Generation(
            engine=str(self._engine_dir),
            text=writer.text,
            token_ids=tuple(token_ids),
            ended_by=self._why_ended(token_ids, room, max_new_tokens),
            num_prompt_tokens=prompt_ids.size,
            first_token_ms=1e3 * (finished_at[1] - finished_at[0]),
            decode_tokens_per_second=(len(token_ids) - 1) / decode_seconds if decode_seconds > 0 else None,
        )

    def _require_known(self, prompt_ids: Ints) -> None:
        if prompt_ids.max() >= self._session.vocab_size:
            raise ArtefactError(
                where=str(self._engine_dir),
                expected=f"a tokenizer with ids below the model's vocabulary of {self._session.vocab_size}",
                found=f"id {prompt_ids.max()}",
                fix="restore the tokenizer that belongs to this model",
            )

    def _room_for(self, prompt_ids: Ints, max_new_tokens: int) -> int:
        """How many new tokens there may be: as asked, but no more than the model has positions for."""
        if max_new_tokens < 1:
            raise RecipeError(
                where="--max-new-tokens", expected="1 or more", found=str(max_new_tokens), fix="choose a larger number"
            )
        room = self._longest - prompt_ids.size
        if room < 1:
            raise TextError(
                where="--prompt",
                expected=f"fewer tokens than the model's longest context, {self._longest}",
                found=f"{prompt_ids.size} tokens",
                fix="shorten the prompt",
            )
        return min(room, max_new_tokens)

    def _why_ended(self, token_ids: Sequence[int], room: int, max_new_tokens: int) -> Ending:
        if token_ids[-1] in self._stop_ids:
            return "stop_token"
        return "max_new_tokens" if room == max_new_tokens else "longest_context"

    def close(self) -> None:
        """Free the engine's memory."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def converse(
    generator: Generator,
    lines: Iterable[str],
    *,
    chat: bool,
    max_new_tokens: int = DEFAULT_NEW_TOKENS,
    on_text: OnText = ignore_text,
) -> Iterator[Generation]:
    """Go on with each line by itself or, as a chat, answer it with all earlier lines and answers in mind."""
    messages: list[Message] = []
    for line in lines:
        if chat:
            messages.append({"role": "user", "content": line})
            made = generator.answer(messages, max_new_tokens, on_text)
            messages.append({"role": "assistant", "content": made.text})
        else:
            made = generator.go_on(line, max_new_tokens, on_text)
        yield made
