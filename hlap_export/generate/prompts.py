"""Text to prompt tokens, plain or as a chat, and new tokens back to text while they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import numpy as np

from hlap_export.checkpoint import load_tokenizer
from hlap_export.engines.base import Ints
from hlap_export.errors import ArtefactError, TextError


class Message(TypedDict):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Prompts:
    """The tokenizer of an engine's folder.

    Raises:
        CheckpointError: the folder has no tokenizer, or it can't be read.
    """

    def __init__(self, engine_dir: Path) -> None:
        self._folder = engine_dir
        self._tokenizer = cast(Any, load_tokenizer(engine_dir))

    def of_text(self, text: str) -> Ints:
        """The tokens [P] of a text to go on with, special tokens added as the tokenizer does.

        Raises:
            TextError: no tokens at all, so that there is nothing to go on with.
        """
        ids: list[int] = self._tokenizer(text)["input_ids"]
        if not ids and self._tokenizer.bos_token_id is not None:
            ids = [self._tokenizer.bos_token_id]
        if not ids:
            raise TextError(
                where="--prompt",
                expected="at least one token of text",
                found=f"{text!r}, which has none",
                fix="write the beginning of the text to generate",
            )
        return np.array(ids, dtype=np.int64)

    def of_chat(self, messages: Sequence[Message]) -> Ints:
        """The tokens [P] of a chat up to where the assistant's answer begins.

        Raises:
            ArtefactError: the tokenizer has no chat template, or it refuses these messages.
        """
        if self._tokenizer.chat_template is None:
            raise ArtefactError(
                where=str(self._folder),
                expected="a chat template (chat_template.jinja, or in tokenizer_config.json)",
                found="a tokenizer without one: this model was not trained to chat",
                fix="leave --chat out and write a prompt that the model can go on with",
            )
        try:
            ids = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # the template is a program of the model's authors; it raises what it likes
            raise ArtefactError(
                where=str(self._folder),
                expected="a chat template that takes these messages",
                found=" ".join(str(error).split())[:200],
                fix="leave --chat out, or correct the template",
            ) from error
        return np.array(ids, dtype=np.int64)

    def writer(self, on_text: Callable[[str], object]) -> TextWriter:
        """What turns new tokens into text, and hands it on as soon as whole words are there."""
        return TextWriter(self._tokenizer, on_text)


class TextWriter:
    """New tokens in, text out; a token may be a part of a word, or of a character.

    Attributes:
        text: all of it so far, without special tokens.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], object]) -> None:
        from transformers import TextStreamer

        writer = self

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    writer.text += text
                    on_text(text)

        self.text = ""
        self._streamer: Any = Streamer(tokenizer, skip_special_tokens=True)

    def write(self, token: int) -> None:
        """Add one token."""
        self._streamer.put(np.array([token]))

    def end(self) -> None:
        """Hand on what is left."""
        self._streamer.end()
