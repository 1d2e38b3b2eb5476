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
Ending = Literal["stop_token", "max_new_tokens", "longest_context", "interrupted"]


def ignore_text(text: str) -> None:
    """Tell nobody."""


class Generation(BaseModel):
    """A text that an engine wrote, and how fast.

    Attributes:
        text: what follows the prompt, without special tokens.
        token_ids: the new tokens, the one that ended the text included.
        ended_by: a stop token of the model, the number of tokens asked for, the model's longest context, or Ctrl-C.
        first_token_ms: from the prompt's tokens to the first new one; None where Ctrl-C came before it.
        decode_tokens_per_second: of the tokens after the first; None where there is but one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["hlap-export/generation/1"] = "hlap-export/generation/1"
    engine: str
    text: str
    token_ids: tuple[int, ...]
    ended_by: Ending
    num_prompt_tokens: int
    first_token_ms: float | None
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
        interruptible: whether Ctrl-C ends a text, so that there may be another one, and not the program.
    """

    def __init__(self, engine_dir: Path, *, sampling: Sampling, interruptible: bool = False) -> None:
        read_manifest(engine_dir, kind="engine")
        self._interruptible = interruptible
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

    def share_of_context(self, messages: Sequence[Message]) -> float:
        """How much of the model's longest context a chat takes up; from 1 on there is no room for an answer."""
        return self._prompts.of_chat(messages).size / self._longest

    def _generate(self, prompt_ids: Ints, max_new_tokens: int, on_text: OnText) -> Generation:
        self._require_known(prompt_ids)
        room = self._room_for(prompt_ids, max_new_tokens)
        stream = token_stream(self._session, prompt_ids, self._choose, max_new_tokens=room, stop_ids=self._stop_ids)
        writer, token_ids, finished_at = self._prompts.writer(on_text), list[int](), [time.perf_counter()]
        interrupted = False
        try:
            for token in stream:
                finished_at.append(time.perf_counter())
                token_ids.append(token)
                writer.write(token)
        except KeyboardInterrupt:
            if not self._interruptible:
                raise
            interrupted = True
        writer.end()
        started, *came_at = finished_at
        decode_seconds = came_at[-1] - came_at[0] if came_at else 0
        return Generation(
            engine=str(self._engine_dir),
            text=writer.text,
            token_ids=tuple(token_ids),
            ended_by="interrupted" if interrupted else self._why_ended(token_ids, room, max_new_tokens),
            num_prompt_tokens=prompt_ids.size,
            first_token_ms=1e3 * (came_at[0] - started) if came_at else None,
            decode_tokens_per_second=(len(came_at) - 1) / decode_seconds if decode_seconds > 0 else None,
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
    tell: OnText | None = None,
) -> Iterator[Generation]:
    """Go on with each line by itself or, as a chat, answer it with all earlier lines and answers in mind.

    Args:
        generator: what writes.
        lines: what is said to it, one after the other.
        chat: whether they belong together.
        max_new_tokens: of one answer.
        on_text: told of each new piece of text.
        tell: told what is wrong with a line, after which the next one is taken, and what a chat forgets that outgrows
            the model's context; None for the error in its place.
    """
    messages: list[Message] = []
    for line in lines:
        try:
            if chat:
                messages.append({"role": "user", "content": line})
                if tell and (forgotten := _forget(generator, messages)):
                    tell(f"the chat has outgrown the model's context: its first {forgotten} messages are forgotten")
                made = generator.answer(messages, max_new_tokens, on_text)
                messages.append({"role": "assistant", "content": made.text})
            else:
                made = generator.go_on(line, max_new_tokens, on_text)
        except TextError as error:
            if tell is None:
                raise
            tell(str(error))
            del messages[-1:]
            continue
        yield made


def _forget(generator: Generator, messages: list[Message]) -> int:
    """Drop the oldest turns of a chat that leaves no room for an answer, until it fills half of the context at most."""
    before = len(messages)
    if generator.share_of_context(messages) >= 1:
        while len(messages) > 1 and generator.share_of_context(messages) > 0.5:
            del messages[:2]
    return before - len(messages)
