"""Folders on disk that know their past: written whole or not at all, with a manifest beside the files.

An artefact is a folder with `manifest.json`. The manifest holds what produced it (stage, parameters, digests of
the inputs, versions, machine) and the digest of every file, so that a later stage, a resumed run or a person can
tell whether it is what it claims to be. A folder inside that has a manifest of its own is known by that.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from hlap_export.digests import FileRecord, file_sha256, remember_sha256
from hlap_export.errors import ArtefactError, OutputError
from hlap_export.manifest import Manifest
from hlap_export.statement import dir_hash

MANIFEST = "manifest.json"
NOTHING_KNOWN: Mapping[str, FileRecord] = MappingProxyType({})
VERSIONED_PACKAGES = (
    "hlap-export",
    "torch",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorrt",
    "tensorrt-rtx",
)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@cache
def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide an artefact's bytes."""
    versions = {"python": platform.python_version()}
    for package in VERSIONED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def machine_facts() -> dict[str, Any]:
    """The machine that a number was measured on: CPU model, usable cores, memory, system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def file_records(folder: Path, *, known: Mapping[str, FileRecord] = NOTHING_KNOWN) -> dict[str, FileRecord]:
    """Digest and size of every file below `folder` except its manifest, by relative POSIX path.

    Of a folder inside that is an artefact itself, there is its manifest alone.

    Args:
        folder: an artefact, or any other folder.
        known: records of files that were hashed while they were written: those aren't read again.
    """
    inside = nested_artefacts(folder)
    return {
        name: _file_record(path, known.get(name))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
        if path.name == MANIFEST or not any(artefact in path.parents for artefact in inside)
        for name in [path.relative_to(folder).as_posix()]
    }


def nested_artefacts(folder: Path) -> list[Path]:
    """Folders below `folder` that have a manifest of their own."""
    return [path.parent for path in sorted(folder.rglob(MANIFEST)) if path.parent != folder]


def _file_record(path: Path, known: FileRecord | None) -> FileRecord:
    stat = path.stat()
    if known is None or known.size_bytes != stat.st_size:
        return FileRecord(sha256=file_sha256(path), size_bytes=stat.st_size)
    remember_sha256(path, known.sha256, since=stat)
    return known


def write_manifest(
    folder: Path,
    *,
    kind: str,
    parameters: dict[str, Any],
    inputs: dict[str, str],
    facts: dict[str, Any] | None = None,
    known: Mapping[str, FileRecord] = NOTHING_KNOWN,
) -> Manifest:
    """Hash the folder's files, save the `known` ones, and write its manifest; call it last, inside `written_whole`."""
    manifest = Manifest(
        kind=kind,
        parameters=parameters,
        inputs=inputs,
        versions=package_versions(),
        machine=machine_facts(),
        facts=facts or {},
        files=file_records(folder, known=known),
    )
    (folder / MANIFEST).write_text(manifest.to_text(), encoding="utf-8", newline="\n")
    return manifest


def read_manifest(folder: Path, *, kind: str | None = None) -> Manifest:
    """The folder's manifest; `kind` is what the caller needs it to be ("checkpoint", "onnx", "engine", ...).

    Raises:
        ArtefactError: no manifest, an unreadable one, or another kind of artefact.
    """
    wanted = f"a folder made by hlap-export{f' of kind {kind!r}' if kind else ''}"
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(
            where=str(folder),
            expected=wanted,
            found="no manifest.json" if folder.exists() else "no such folder",
            fix="pass the folder that the previous stage wrote",
        )
    try:
        # Not as text: that takes "\r" for "\n", and a changed byte must not go unseen.
        manifest = Manifest.from_text(path.read_bytes().decode("utf-8"))
    except (ValueError, LookupError) as error:
        raise ArtefactError(
            where=str(path),
            expected="a manifest as hlap-export wrote it",
            found=str(error.errors()[0]["msg"]) if isinstance(error, ValidationError) else str(error),
            fix="make the artefact again",
        ) from error
    if kind is not None and manifest.kind != kind:
        raise ArtefactError(
            where=str(folder), expected=wanted, found=f"kind {manifest.kind!r}", fix="pass the right folder"
        )
    return manifest


def is_intact(folder: Path, manifest: Manifest) -> bool:
    """Whether the folder holds exactly the files of its manifest, byte for byte."""
    return file_records(folder) == manifest.files


def folder_digest(folder: Path) -> str:
    """Digest of an artefact from its manifest, or of any other folder (a plain HF checkpoint) from its files."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder).digest
    return dir_hash({name: record.sha256 for name, record in file_records(folder).items()})


@contextmanager
def written_whole(out: Path) -> Generator[Path]:
    """A folder to write into that becomes `out` by one rename when the block ends well.

    On any error, a kill included, `out` doesn't exist; leftovers of an earlier kill are removed first.

    Raises:
        OutputError: `out` exists and isn't an empty folder, can't be created, or the disk is full.
    """
    require_free(out)
    partial = partial_folder(out)
    with telling_output_errors(out):
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            yield partial
            move_into_place(partial, out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def partial_folder(out: Path) -> Path:
    """Where `out` is while it isn't whole."""
    return out.parent / f".{out.name}.partial"


def move_into_place(partial: Path, out: Path) -> None:
    """Make a folder that is whole now visible."""
    if out.exists():
        out.rmdir()
    partial.rename(out)


@contextmanager
def telling_output_errors(out: Path) -> Generator[None]:
    """Turn the system's refusals to write into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(out) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise OutputError(
                where=str(out),
                expected="a place that can be written",
                found=error.strerror or str(error),
                fix="choose another --out or change its permissions",
            ) from error
        raise


def require_free(out: Path) -> None:
    """Refuse an output path that already holds something.

    Raises:
        OutputError: `out` is a file or a non-empty folder.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(
            where=str(out),
            expected="a new or empty folder",
            found="a file" if out.is_file() else "a folder with files in it",
            fix="choose another --out, or remove it if it is no longer needed",
        )


def disk_full(out: Path) -> OutputError:
    """The error for a full disk at `out`, with what is free."""
    parent = next((folder for folder in (out, *out.parents) if folder.exists()), Path("/"))
    partial = partial_folder(out)
    kept = f", which goes on from what is finished in {partial}" if partial.exists() else ""
    return OutputError(
        where=str(out),
        expected="room on the disk for the output",
        found=f"the disk is full ({shutil.disk_usage(parent).free / 2**20:.0f} MiB free)",
        fix=f"free some space or choose another --out, then run the same command again{kept}",
    )


def write_text_whole(path: Path, text: str) -> None:
    """Write a text file by rename, so that a kill never leaves half of it.

    Raises:
        OutputError: the disk is full.
    """
    with file_written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def file_written_whole(path: Path) -> Generator[Path]:
    """A path to write to that becomes `path` by one rename when the block ends well.

    Raises:
        OutputError: the disk is full.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_full(path) from error
        raise
    finally:
        partial.unlink(missing_ok=True)
