"""Run a stage, or reuse what it left: the memory of a run's folder.

Beside each output lies a record of the request that produced it (`.stages/<name>.json`: parameters, digests of the
inputs, versions) and of the output's own digest. An output is reused when the same request would be made again and
its files are byte for byte what they were; else it is made again, and the reason is told.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from hlap_export.artifacts import (
    MANIFEST,
    Manifest,
    is_intact,
    package_versions,
    read_manifest,
    require_free,
    write_manifest,
    write_text_whole,
)
from hlap_export.checkpoint.digest import model_digest
from hlap_export.digests import file_sha256
from hlap_export.errors import ArtefactError, OutputError
from hlap_export.progress import Progress, Step
from hlap_export.report.summary import Origin

RECORDS = ".stages"
Document = TypeVar("Document", bound=BaseModel)
Inputs = dict[str, Path | None]


class StageRecord(BaseModel):
    """What was asked of a stage, and what came out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: dict[str, Any]
    inputs: dict[str, str | None]
    versions: dict[str, str]
    digest: str


class StageRunner:
    """The stages of one run, in its folder `out`.

    Args:
        out: the run's folder; refused unless it is empty, new, or an earlier run to resume.
        resume: reuse finished stages.
        progress: where each stage is announced.

    Raises:
        OutputError: `out` holds an earlier run that isn't to be resumed, or other files.
    """

    def __init__(self, out: Path, *, resume: bool, progress: Progress) -> None:
        self._out = out
        self._progress = progress
        self._names: list[str] = []
        is_earlier_run = (out / RECORDS).is_dir()
        if is_earlier_run and not resume:
            raise OutputError(
                where=str(out),
                expected="a new or empty folder",
                found="an earlier run",
                fix="add --resume to go on from what it finished, or choose another --out",
            )
        if not is_earlier_run:
            require_free(out)
        (out / MANIFEST).unlink(missing_ok=True)  # it describes the run as it was when it was finished

    def folder(
        self,
        name: str,
        *,
        make: Callable[[Path, Step], object],
        inputs: Inputs,
        parameters: dict[str, Any],
        steps_in_bytes: bool = False,
    ) -> Path:
        """The artefact folder `name` (such as "onnx/dense"), made by `make(folder, step)` unless it can be reused.

        Args:
            name: place in the run's folder.
            make: writes the artefact, whole or not at all; `step` tells how far it is.
            inputs: what it is made from: folders and files, None for one left to its default.
            parameters: JSON values that decide the result.
            steps_in_bytes: whether `step` counts bytes.
        """
        target = self._out / name
        self._names.append(name)
        if self._is_reusable(name, target, inputs, parameters):
            return target
        _remove(target)
        (self._out / RECORDS).mkdir(parents=True, exist_ok=True)
        with self._progress.stage(name, in_bytes=steps_in_bytes) as step:
            make(target, step)
        self._record(name, target, inputs, parameters)
        return target

    def document(
        self,
        name: str,
        schema: type[Document],
        *,
        make: Callable[[Step], Document],
        inputs: Inputs,
        parameters: dict[str, Any],
        companion_damage: Callable[[Document], str | None] = lambda _: None,
    ) -> Document:
        """The JSON result `name` (such as "verify.json"), made by `make(step)` unless it can be reused.

        Args:
            name: its file in the run's folder.
            schema: what it is.
            make: returns it; `step` tells how far it is.
            inputs: as for `folder`.
            parameters: as for `folder`.
            companion_damage: what is wrong with a file beside it that `make` writes as well, in words.
        """
        target = self._out / name
        self._names.append(name)

        def damage() -> str | None:
            return companion_damage(schema.model_validate_json(target.read_text(encoding="utf-8")))

        if self._is_reusable(name, target, inputs, parameters, damage):
            return schema.model_validate_json(target.read_text(encoding="utf-8"))
        _remove(target)
        with self._progress.stage(name.removesuffix(".json")) as step:
            value = make(step)
        # Only now: a first stage that refuses its input leaves no folder behind.
        (self._out / RECORDS).mkdir(parents=True, exist_ok=True)
        write_text_whole(target, value.model_dump_json(indent=2) + "\n")
        self._record(name, target, inputs, parameters)
        _remove(self.unfinished(name))
        return value

    def origins(self) -> tuple[Origin, ...]:
        """What each finished output is and was made from, in the order in which they were asked for."""
        records = {name: self._read_record(name) for name in self._names}
        return tuple(
            Origin(
                name=name,
                digest=record.digest,
                made_from={name: digest for name, digest in record.inputs.items() if digest is not None},
            )
            for name, record in records.items()
            if record is not None
        )

    def path(self, name: str) -> Path:
        """Where the file or folder `name` of this run lies, or would."""
        return self._out / name

    def seal(self, *, inputs: Inputs, parameters: dict[str, Any], passed: bool) -> Manifest:
        """Write the run's manifest, when everything else is written: its files, and the manifests of its artefacts."""
        digests = {name: model_digest(path) for name, path in inputs.items() if path is not None}
        return write_manifest(self._out, kind="run", parameters=parameters, inputs=digests, facts={"passed": passed})

    def unfinished(self, name: str) -> Path:
        """The folder where a stage may keep what it has finished; removed once the document `name` is written."""
        return self._out / RECORDS / f"{name.removesuffix('.json')}.unfinished"

    def _is_reusable(
        self,
        name: str,
        target: Path,
        inputs: Inputs,
        parameters: dict[str, Any],
        companion_damage: Callable[[], str | None] = lambda: None,
    ) -> bool:
        record = self._read_record(name)
        if record is None:
            return False
        reason = self._why_stale(record, target, inputs, parameters) or companion_damage()
        if reason is None:
            self._progress.note(f"{name}: reused")
        else:
            self._progress.note(f"{name}: made again because {reason}")
            self._record_path(name).unlink()
        return reason is None

    def _why_stale(self, record: StageRecord, target: Path, inputs: Inputs, parameters: dict[str, Any]) -> str | None:
        """The reason why an earlier output doesn't answer this request, in words; None if it does."""
        versions = package_versions()
        return (
            _first_difference(record.parameters, parameters, "{name} is now {new}, was {old}")
            or _first_difference(record.inputs, self._input_digests(inputs), "its input {name} is another one")
            or _first_difference(record.versions, versions, "{name} is now version {new}, was {old}")
            or _damage(target, record.digest)
        )

    def _record(self, name: str, target: Path, inputs: Inputs, parameters: dict[str, Any]) -> None:
        record = StageRecord(
            parameters=parameters,
            inputs=self._input_digests(inputs),
            versions=package_versions(),
            digest=_digest(target),
        )
        write_text_whole(self._record_path(name), record.model_dump_json(indent=2) + "\n")

    def _read_record(self, name: str) -> StageRecord | None:
        path = self._record_path(name)
        try:
            return StageRecord.model_validate_json(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValidationError):
            return None

    def _record_path(self, name: str) -> Path:
        return self._out / RECORDS / f"{name.removesuffix('.json').replace('/', '-')}.json"

    def _input_digests(self, inputs: Inputs) -> dict[str, str | None]:
        return {name: None if path is None else _digest(path) for name, path in inputs.items()}


def _digest(path: Path) -> str:
    return model_digest(path) if path.is_dir() else file_sha256(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_difference(old: dict[str, Any], new: dict[str, Any], sentence: str) -> str | None:
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            return sentence.format(name=name, old=old.get(name), new=new.get(name))
    return None


def _damage(target: Path, digest: str) -> str | None:
    """What is wrong with a finished output's files, if anything."""
    if not target.exists():
        return "it is gone"
    if target.is_file():
        return None if file_sha256(target) == digest else "the file was changed"
    try:
        manifest = read_manifest(target)
    except ArtefactError:
        return "its manifest is gone or unreadable"
    if manifest.digest != digest:
        return "its manifest was changed"
    return None if is_intact(target, manifest) else "its files were changed"
