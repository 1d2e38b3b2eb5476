"""Token windows of a text: disjoint, of one length, spread evenly over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hlap_export.checkpoint import load_tokenizer
from hlap_export.digests import file_sha256
from hlap_export.errors import ArtefactError, TextError

Ids = NDArray[np.int64]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenText:
    """A text as one stream of token ids, no special tokens added."""

    path: Path
    sha256: str
    ids: Ids


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds a tokenizer, damaged or not."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def read_tokens(folder: Path, text: Path, *, vocab_size: int, trust_remote_code: bool = False) -> TokenText:
    """Tokenise `text` with the tokenizer in `folder`.

    Raises:
        TextError: no such text, not UTF-8, or empty.
        ArtefactError: the tokenizer makes ids that the model hasn't.
    """
    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(
            where=str(text),
            expected="a UTF-8 text file",
            found=str(error.strerror if isinstance(error, OSError) else error),
            fix="pass another file to --text",
        ) from error
    tokenizer = cast(Any, load_tokenizer(folder, trust_remote_code=trust_remote_code))
    ids: Ids = np.array(tokenizer(content, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
    if ids.size == 0:
        raise TextError(
            where=str(text), expected="text to evaluate on", found="no tokens in it", fix="pass another file to --text"
        )
    if ids.max() >= vocab_size:
        raise ArtefactError(
            where=str(folder),
            expected=f"a tokenizer with ids below the model's vocabulary of {vocab_size}",
            found=f"id {ids.max()}",
            fix="restore the tokenizer that belongs to this model",
        )
    return TokenText(path=text, sha256=file_sha256(text), ids=ids)


def require_window_length(window_length: int, max_positions: int) -> None:
    """Refuse windows that the model has no positions for, or in which there is nothing to predict.

    Raises:
        TextError: fewer than 2 tokens, or more than `max_positions`.
    """
    if not 2 <= window_length <= max_positions:
        raise TextError(
            where="window_length",
            expected=f"2 to {max_positions} tokens (the model's max_position_embeddings)",
            found=str(window_length),
            fix="set a window_length in that range in the --recipe",
        )


def spread_windows(text: TokenText, *, windows: int, window_length: int) -> Ids:
    """Windows [windows, window_length], disjoint, the gaps between them as even as they can be.

    Raises:
        TextError: the text is too short for so many.
    """
    available = text.ids.size // window_length
    if available < windows:
        raise TextError(
            where=str(text.path),
            expected=f"{windows} windows of {window_length} tokens ({windows * window_length} tokens)",
            found=f"{text.ids.size} tokens, enough for {available}",
            fix="pass a longer --text, or fewer or shorter windows",
        )
    starts: Sequence[int] = [index * available // windows * window_length for index in range(windows)]
    return np.stack([text.ids[start : start + window_length] for start in starts])
