"""What a model folder says about generating text: where it ends, and how its makers meant it to be sampled."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hlap_export.checkpoint.layout import read_config
from hlap_export.errors import CheckpointError

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """The folder's own settings; what it doesn't say has the value that transformers gives it.

    Attributes:
        bos_token_id: the token that a text starts with; None where the model has none.
        eos_token_ids: each of them ends a text; chat models end a turn with another token than a text.
        pad_token_id: the token that fills up a batch; None where the model has none.
        top_k: 0 for no limit.
    """

    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    do_sample: bool
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float


def read_generation_defaults(model: Path) -> GenerationDefaults:
    """The defaults of a model folder: from generation_config.json, and from config.json where that is silent.

    Raises:
        CheckpointError: a file isn't a JSON object, or there is no config.json.
    """
    stated: dict[str, Any] = {**_without_nulls(read_config(model)), **_without_nulls(_read_own(model))}
    eos = stated.get("eos_token_id", ())
    return GenerationDefaults(
        bos_token_id=stated.get("bos_token_id"),
        eos_token_ids=(eos,) if isinstance(eos, int) else tuple(eos),
        pad_token_id=stated.get("pad_token_id"),
        do_sample=stated.get("do_sample", False),
        temperature=stated.get("temperature", 1.0),
        top_k=stated.get("top_k", 50),
        top_p=stated.get("top_p", 1.0),
        repetition_penalty=stated.get("repetition_penalty", 1.0),
    )


def _read_own(model: Path) -> dict[str, Any]:
    path = model / GENERATION_CONFIG
    if not path.is_file():
        return {}
    try:
        settings: object = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        settings = error
    if not isinstance(settings, dict):
        raise CheckpointError(
            where=str(path),
            expected="a JSON object",
            found=str(settings)[:200],
            fix="restore the file from the original model, or remove it",
        )
    return cast(dict[str, Any], settings)


def _without_nulls(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
