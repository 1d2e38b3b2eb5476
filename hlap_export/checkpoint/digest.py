"""The digest of a model's folder, without what lies in it unread."""

from __future__ import annotations

from pathlib import Path

from hlap_export.artifacts import MANIFEST, folder_digest
from hlap_export.checkpoint.tensors import shard_names
from hlap_export.digests import file_sha256
from hlap_export.statement import dir_hash

OTHER_WEIGHTS = frozenset({".bin", ".pt", ".pth", ".gguf", ".onnx", ".data", ".msgpack", ".h5"})
"""Suffixes of weights that are never read."""


def model_digest(folder: Path) -> str:
    """Digest of an artefact from its manifest, or of a checkpoint from elsewhere from the files that are read of it.

    Those lie on its top level. The same weights once more, in another format or below (`original/*.pth` of Llama,
    `consolidated.safetensors` of Mistral), can take minutes to read and decide nothing.

    Raises:
        CheckpointError: an index that can't be read.
    """
    if (folder / MANIFEST).is_file():
        return folder_digest(folder)
    shards = shard_names(folder)
    read = [path for path in folder.iterdir() if path.is_file() and path.suffix not in OTHER_WEIGHTS]
    read = [path for path in read if path.suffix != ".safetensors" or path.name in shards]
    return dir_hash({path.name: file_sha256(path) for path in read})
