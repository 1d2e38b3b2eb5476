"""What an artefact says of itself: the value behind `manifest.json`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from hlap_export.digests import FileRecord
from hlap_export.statement import (
    STAGE,
    BuildDefinition,
    Builder,
    Predicate,
    Resource,
    RunDetails,
    Statement,
    dir_hash,
    parse_sealed,
    sealed_text,
)

FILE_DIGEST = "sha256:"
"""What the digest of a single file begins with, among inputs, where those of folders are the rule."""


class Manifest(BaseModel):
    """What an artefact is, what made it, and what it consists of.

    `parameters` and `inputs` decide the content; `versions` and `machine` are recorded, and `facts` is what the stage
    counted or measured on the way. An input is the digest of a folder, or "sha256:" and that of a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    parameters: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]
    machine: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, FileRecord]

    @property
    def digest(self) -> str:
        """Identity of the content: the hash of the file records alone."""
        return dir_hash({name: record.sha256 for name, record in self.files.items()})

    def to_text(self) -> str:
        """The content of `manifest.json`."""
        definition = BuildDefinition(
            build_type=STAGE + self.kind,
            external_parameters=self.parameters,
            internal_parameters={"machine": self.machine},
            resolved_dependencies=tuple(_dependency(name, digest) for name, digest in self.inputs.items()),
        )
        made = RunDetails(
            builder=Builder(version=self.versions),
            byproducts=(Resource(name="facts", digest={}, annotations=self.facts),),
        )
        return sealed_text(
            Statement(
                subject=tuple(_subject(name, record) for name, record in self.files.items()),
                predicate=Predicate(build_definition=definition, run_details=made),
            )
        )

    @classmethod
    def from_text(cls, text: str) -> Manifest:
        """The manifest in a `manifest.json`.

        Raises:
            ValueError: not a manifest, or changed since it was written.
        """
        statement = parse_sealed(text)
        asked, made = statement.predicate.build_definition, statement.predicate.run_details
        return cls(
            kind=asked.build_type.removeprefix(STAGE),
            parameters=asked.external_parameters,
            inputs={made_from.name: _input(made_from) for made_from in asked.resolved_dependencies},
            versions=made.builder.version,
            machine=asked.internal_parameters["machine"],
            facts=made.byproducts[0].annotations,
            files={
                file.name: FileRecord(sha256=file.digest["sha256"], size_bytes=file.annotations["size_bytes"])
                for file in statement.subject
            },
        )


def _subject(name: str, record: FileRecord) -> Resource:
    return Resource(name=name, digest={"sha256": record.sha256}, annotations={"size_bytes": record.size_bytes})


def _dependency(name: str, digest: str) -> Resource:
    algorithm = "sha256" if digest.startswith(FILE_DIGEST) else "dirHash"
    return Resource(name=name, digest={algorithm: digest.removeprefix(FILE_DIGEST)})


def _input(made_from: Resource) -> str:
    folder = made_from.digest.get("dirHash")
    return f"{FILE_DIGEST}{made_from.digest['sha256']}" if folder is None else folder
