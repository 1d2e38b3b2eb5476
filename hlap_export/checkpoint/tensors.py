"""The tensors of a checkpoint folder: which safetensors shard holds which, with names, shapes and sizes verified."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hlap_export.errors import CheckpointError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FLOATING_DTYPES = ("F64", "F32", "F16", "BF16")
_HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit on its JSON header


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRecord:
    """Where one tensor lies: `data_offsets` in bytes from the end of its shard's header."""

    name: str
    shard: str
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def size_bytes(self) -> int:
        return self.data_offsets[1] - self.data_offsets[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """One safetensors file: its free-form metadata and its tensors in file order."""

    name: str
    metadata: dict[str, str]
    data_start: int
    tensors: tuple[TensorRecord, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointTensors:
    """All shards of a checkpoint, headers read and checked; no tensor data is loaded."""

    folder: Path
    shards: tuple[Shard, ...]

    @property
    def by_name(self) -> dict[str, TensorRecord]:
        return {record.name: record for shard in self.shards for record in shard.tensors}


def open_tensors(model: Path) -> CheckpointTensors:
    """Read every shard's header and check that the shards are complete.

    Raises:
        CheckpointError: no safetensors, a shard missing, truncated or corrupt, or an index that doesn't match.
    """
    index_path = model / INDEX_FILE
    if index_path.is_file():
        weight_map = _read_index(index_path)
        names = sorted(set(weight_map.values()))
        if missing := [name for name in names if not (model / name).is_file()]:
            raise CheckpointError(
                where=str(index_path),
                expected=f"all {len(names)} shards beside it",
                found=f"{', '.join(missing)} missing",
                fix="download the missing files again",
            )
        shards = tuple(read_shard(model / name) for name in names)
        held = {record.name: record.shard for shard in shards for record in shard.tensors}
        if held != weight_map:
            wrong = sorted(name for name in held.keys() | weight_map.keys() if held.get(name) != weight_map.get(name))
            raise CheckpointError(
                where=str(index_path),
                expected="the index to name the shard of each tensor",
                found=f"{len(wrong)} tensors elsewhere than it says, {wrong[0]} first",
                fix="index and shards must come from the same download",
            )
        return CheckpointTensors(folder=model, shards=shards)
    if (model / SINGLE_FILE).is_file():
        return CheckpointTensors(folder=model, shards=(read_shard(model / SINGLE_FILE),))
    others = sorted(path.name for path in model.glob("*.bin")) + sorted(path.name for path in model.glob("*.pt"))
    raise CheckpointError(
        where=str(model),
        expected=f"{SINGLE_FILE}, or {INDEX_FILE} with its shards",
        found=f"only pickles ({others[0]}), which are never loaded" if others else "no weights",
        fix="convert the model to safetensors" if others else "download the weights into the folder",
    )


def shard_names(model: Path) -> set[str]:
    """Names of the safetensors files that make up the checkpoint, whether or not they are there.

    Raises:
        CheckpointError: an index that can't be read.
    """
    index = model / INDEX_FILE
    return set(_read_index(index).values()) if index.is_file() else {SINGLE_FILE}


def read_shard(path: Path) -> Shard:
    """Parse one file's header (8-byte little-endian length, then JSON) and check it against the file's size.

    Format: https://huggingface.co/docs/safetensors/index#format

    Raises:
        CheckpointError: truncated or corrupt.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= min(_HEADER_LIMIT_BYTES, size - 8):
            raise _corrupt(path, f"a header of {length} bytes in a file of {size}")
        try:
            header = cast(dict[str, dict[str, Any]], json.loads(file.read(length)))
            metadata = cast(dict[str, str], header.pop("__metadata__", {}))
            tensors = tuple(
                TensorRecord(
                    name=name,
                    shard=path.name,
                    dtype=entry["dtype"],
                    shape=tuple(entry["shape"]),
                    data_offsets=(entry["data_offsets"][0], entry["data_offsets"][1]),
                )
                for name, entry in header.items()
            )
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise _corrupt(path, f"a header that isn't valid ({error})") from error
    tensors = tuple(sorted(tensors, key=lambda record: record.data_offsets))
    data_start = 8 + length
    end = 0
    for record in tensors:
        if record.data_offsets[0] != end:
            raise _corrupt(path, f"{record.name} at byte {record.data_offsets[0]} of the data, not at {end}")
        end = record.data_offsets[1]
    if data_start + end != size:
        raise _corrupt(path, f"{size} bytes where the header promises {data_start + end}")
    return Shard(name=path.name, metadata=metadata, data_start=data_start, tensors=tensors)


def require_floating(folder: Path, record: TensorRecord) -> None:
    """Refuse a tensor whose numbers are wanted if it is stored as integers, or scaled.

    Raises:
        CheckpointError: it is.
    """
    if record.dtype not in FLOATING_DTYPES:
        raise CheckpointError(
            where=f"{folder / record.shard}: {record.name}",
            expected=f"floating-point weights ({', '.join(FLOATING_DTYPES)})",
            found=record.dtype,
            fix="use the checkpoint that this one was made from",
        )


def _read_index(path: Path) -> dict[str, str]:
    try:
        return cast(dict[str, str], json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(
            where=str(path), expected="a JSON index with weight_map", found=str(error), fix="download it again"
        ) from error


def _corrupt(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        where=str(path),
        expected="a complete safetensors file",
        found=found,
        fix="the file is truncated or damaged: download it again",
    )
