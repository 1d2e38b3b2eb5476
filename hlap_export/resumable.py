"""A folder written file by file that a kill, a full disk or Ctrl-C doesn't undo: the same request goes on from there.

Until it is whole it is called `.<name>.partial`; beside it `.<name>.partial.json` says what was asked for and which
files are finished. Another request for the same place starts from nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from hlap_export.artifacts import (
    move_into_place,
    partial_folder,
    require_free,
    telling_output_errors,
    write_text_whole,
)
from hlap_export.digests import FileRecord, HashingWriter
from hlap_export.errors import OutputError


class Journal(BaseModel):
    """What of a request is finished: its files, and the digests of inputs that needn't be read again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    request: str
    files: dict[str, FileRecord] = {}
    inputs: dict[str, str] = {}


class ResumableFolder:
    """The unfinished folder: `folder` to write into, and what an earlier attempt left there."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder = folder
        self._journal = journal

    @property
    def files(self) -> Mapping[str, FileRecord]:
        """Finished files by name, as `write_manifest` takes them."""
        return self._journal.files

    @property
    def inputs(self) -> Mapping[str, str]:
        """SHA-256 of the inputs that were worked off, by name."""
        return self._journal.inputs

    @contextmanager
    def new_file(self, name: str) -> Generator[HashingWriter]:
        """A file that is finished, and never written again, once the block has ended well."""
        path = self.folder / name
        with HashingWriter(partial := path.with_name(f"{name}.partial")) as file:
            yield file
        partial.replace(path)
        self._save(self._journal.model_copy(update={"files": {**self.files, name: file.record}}))

    def finish_input(self, name: str, sha256: str) -> None:
        """Note that an input was worked off: every file that is made from it is finished."""
        self._save(self._journal.model_copy(update={"inputs": {**self.inputs, name: sha256}}))

    def _save(self, journal: Journal) -> None:
        write_text_whole(journal_of(self.folder), journal.model_dump_json(indent=2) + "\n")
        self._journal = journal


@contextmanager
def resumable(out: Path, *, request: str) -> Generator[ResumableFolder]:
    """A folder that becomes `out` by one rename when the block ends well, and is gone on with when it didn't.

    Args:
        out: a new or empty folder.
        request: digest of all that decides the result, the versions of the code included.

    Raises:
        OutputError: `out` exists and isn't an empty folder, another process is writing it, it can't be created, or
            the disk is full.
    """
    require_free(out)
    partial = partial_folder(out)
    with telling_output_errors(out):
        partial.mkdir(parents=True, exist_ok=True)
        with _locked(partial, out):
            unfinished = ResumableFolder(partial, _read_journal(partial, request))
            _clear(partial, keep=unfinished.files)
            try:
                yield unfinished
            except BaseException:
                if not unfinished.files:
                    discard_partial(partial)
                raise
            require_free(out)  # while there is still a journal to go on with
            journal_of(partial).unlink(missing_ok=True)  # before the rename: a kill after it would leave it for good
            move_into_place(partial, out)


def journal_of(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def discard_partial(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    journal_of(partial).unlink(missing_ok=True)


def _read_journal(partial: Path, request: str) -> Journal:
    """What is finished of this very request; nothing if the journal is another's, missing or damaged."""
    with suppress(FileNotFoundError, ValidationError, UnicodeDecodeError):
        journal = Journal.model_validate_json(journal_of(partial).read_text(encoding="utf-8"))
        there = {path.name: path.stat().st_size for path in partial.iterdir() if path.is_file()}
        if journal.request == request and all(there.get(n) == r.size_bytes for n, r in journal.files.items()):
            return journal
    return Journal(request=request)


def _clear(partial: Path, *, keep: Mapping[str, FileRecord]) -> None:
    for path in partial.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


@contextmanager
def _locked(partial: Path, out: Path) -> Generator[None]:
    """Keep a second process from writing into the same folder; the system frees the lock of one that is killed."""
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                where=str(out),
                expected="nobody else to be writing it",
                found="another process that is",
                fix="wait for it, or choose another --out",
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
