"""Supported architectures; adding one is a file here and a row in `FAMILIES`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hlap_export.errors import CheckpointError
from hlap_export.families.gemma2 import GEMMA2
from hlap_export.families.llama import LLAMA
from hlap_export.families.mistral import MISTRAL
from hlap_export.families.qwen2 import QWEN2
from hlap_export.families.qwen3 import QWEN3
from hlap_export.families.spec import AlphaTarget, Biases, Family

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, GEMMA2, QWEN3)}

__all__ = ["FAMILIES", "AlphaTarget", "Biases", "Family", "family_of"]


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family of a config.json, of a dense or of a pruned checkpoint.

    Raises:
        CheckpointError: the architecture is not supported, or isn't a decoder.
    """
    model_type = str(config.get("model_type", ""))
    family = FAMILIES.get(model_type.removeprefix("hlap_"))
    if family is not None:
        return family
    raise CheckpointError(
        where=where,
        expected=f"a decoder of a supported family ({', '.join(FAMILIES)})",
        found=f"model_type {model_type!r}" if model_type else "no model_type",
        fix="use a model of one of these families, or add one: CONTRIBUTING.md says how",
    )
