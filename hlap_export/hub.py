"""What a MODEL argument means: a folder, a hub id, or, left out, the reference model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

from hlap_export.errors import CheckpointError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# Weights as safetensors only: a pickle is never downloaded, let alone loaded. Nor is code.
DOWNLOADED = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt")


def resolve_model(model: str | Path | None) -> Path:
    """The checkpoint folder of a MODEL; a hub id is downloaded once into the Hugging Face cache.

    Raises:
        CheckpointError: no such folder, and no hub model of that name can be reached.
    """
    if model is None:
        from hlap_export import reference_model

        return reference_model.path()
    folder = Path(model).expanduser()
    if folder.exists() or isinstance(model, Path) or not HUB_ID.fullmatch(model):
        return _require_folder(folder)
    return _download(model)


def model_name(model: str | None) -> str:
    """What to call a MODEL in a report."""
    return "reference model" if model is None else Path(model).name


def _require_folder(folder: Path) -> Path:
    if folder.is_dir():
        return folder
    raise CheckpointError(
        where=str(folder),
        expected="the folder of a Hugging Face checkpoint",
        found="a file" if folder.is_file() else "no such folder",
        fix="check the path, or pass a hub id such as org/model",
    )


def _download(hub_id: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        hub = cast(Any, huggingface_hub)  # bare dicts and tqdm in its signature
        return Path(hub.snapshot_download(hub_id, allow_patterns=list(DOWNLOADED)))
    except RepositoryNotFoundError as error:
        found = "no such folder here, and no such model on the hub (or it is private)"
        raise _not_found(hub_id, found, "check the name; for a private model log in with `hf auth login`") from error
    except (LocalEntryNotFoundError, OSError) as error:
        found = "no such folder here, and the hub can't be reached"
        raise _not_found(hub_id, found, "check the path, or download the model where there is a network") from error


def _not_found(hub_id: str, found: str, fix: str) -> CheckpointError:
    return CheckpointError(where=hub_id, expected="a checkpoint folder or a hub id", found=found, fix=fix)
