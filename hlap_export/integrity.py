"""Is a folder still what was written? Every byte of its files and of its manifests, and of the artefacts inside."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hlap_export.artifacts import MANIFEST, file_records, nested_artefacts, read_manifest
from hlap_export.digests import FileRecord
from hlap_export.errors import ArtefactError, CheckFailed
from hlap_export.manifest import Manifest

Damage = Literal["changed", "missing", "added", "manifest changed"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Artefact(_Record):
    """One folder with a manifest, as the manifest describes it; `name` is relative to what was asked for."""

    name: str
    kind: str
    digest: str
    num_files: int
    size_bytes: int
    made_from: dict[str, str]


class Problem(_Record):
    """One file that isn't what a manifest says; its name is relative to what was asked for."""

    file: str
    damage: Damage
    says: str
    """What was found, in words."""


class ManifestReport(_Record):
    """What `verify-manifest` found."""

    folder: str
    artefacts: tuple[Artefact, ...]
    problems: tuple[Problem, ...]

    @property
    def is_intact(self) -> bool:
        """Whether every byte is what the manifests say."""
        return not self.problems

    def require_intact(self) -> None:
        """Do nothing if nothing was changed.

        Raises:
            CheckFailed: names the first file that was, and how many others were.
        """
        if not self.problems:
            return
        first, others = self.problems[0], len(self.problems) - 1
        raise CheckFailed(
            where=f"{self.folder}: {first.file}",
            expected="what the manifest lists, byte for byte",
            found=f"{first.damage}, {first.says}" + (f"; and {others} more" if others else ""),
            fix="make the artefact again, or take it from where it was made",
        )


def verify_manifest(folder: Path) -> ManifestReport:
    """Compare an artefact, or a run and every artefact in it, with their manifests.

    Args:
        folder: a checkpoint, export, engine, bundle or run.

    Raises:
        ArtefactError: it has no manifest.
    """
    if not (folder / MANIFEST).is_file():
        raise ArtefactError(
            where=str(folder),
            expected="a folder with a manifest: a checkpoint, export, engine, bundle, or the folder of a finished run",
            found=f"no {MANIFEST}" if folder.exists() else "no such folder",
            fix="pass a folder that hlap-export wrote; a run gets its manifest when it is finished",
        )
    artefacts: list[Artefact] = []
    problems: list[Problem] = []
    for place in (folder, *nested_artefacts(folder)):
        try:
            manifest = read_manifest(place)
        except ArtefactError as error:
            problems.append(Problem(file=_name(folder, place / MANIFEST), damage="manifest changed", says=error.found))
            continue
        artefacts.append(_described(folder, place, manifest))
        problems += _problems(folder, place, manifest)
    return ManifestReport(folder=str(folder), artefacts=tuple(artefacts), problems=tuple(problems))


def _described(folder: Path, place: Path, manifest: Manifest) -> Artefact:
    return Artefact(
        name=_name(folder, place),
        kind=manifest.kind,
        digest=manifest.digest,
        num_files=len(manifest.files),
        size_bytes=sum(record.size_bytes for record in manifest.files.values()),
        made_from=manifest.inputs,
    )


def _problems(folder: Path, place: Path, manifest: Manifest) -> list[Problem]:
    found = file_records(place)
    names = sorted({*found, *manifest.files})
    return [
        Problem(file=_name(folder, place / name), damage=damage, says=says)
        for name in names
        if (difference := _difference(manifest.files.get(name), found.get(name))) is not None
        for damage, says in [difference]
    ]


def _difference(listed: FileRecord | None, found: FileRecord | None) -> tuple[Damage, str] | None:
    """What happened to one file, if anything."""
    if listed is None:
        return "added", "the manifest doesn't list it"
    if found is None:
        return "missing", f"the manifest lists it with {listed.size_bytes} bytes"
    if listed.size_bytes != found.size_bytes:
        return "changed", f"{found.size_bytes} bytes instead of {listed.size_bytes}"
    return ("changed", "other bytes, equally many") if listed.sha256 != found.sha256 else None


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()
