"""The form of a manifest: an in-toto Statement v1 with SLSA provenance v1 as its predicate, sealed.

Tools of the supply chain read it: its subjects are the artefact's files, its dependencies what these were made from.
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md and https://slsa.dev/spec/v1.0/provenance

The seal is the SHA-256 of the text with zeros in the seal's own place. It tells of any byte that was changed by
accident; against intent, sign the file (it is the payload of a DSSE envelope of type application/vnd.in-toto+json).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
STAGE = "urn:hlap-export:stage:"
"""What a build type begins with; the stage follows."""

BUILDER = "pkg:pypi/hlap-export"
UNSEALED = "0" * 64


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, validate_by_name=True)


class Resource(_Part):
    """A file or a folder: its name and its digest, by the name of the algorithm."""

    name: str
    digest: dict[str, str]
    annotations: dict[str, Any] = {}


class BuildDefinition(_Part):
    """What was asked for, and what it was made from."""

    build_type: str
    external_parameters: dict[str, Any]
    internal_parameters: dict[str, Any]
    resolved_dependencies: tuple[Resource, ...]


class Builder(_Part):
    """What made it: this package, and the versions of all that decide the outcome."""

    id: Literal["pkg:pypi/hlap-export"] = BUILDER
    version: dict[str, str]


class RunDetails(_Part):
    """Who made it; as a by-product, what was counted on the way."""

    builder: Builder
    byproducts: tuple[Resource, ...]


class Predicate(_Part):
    """How the subjects were made. The seal is an extension field, named as SLSA wants them."""

    build_definition: BuildDefinition
    run_details: RunDetails
    seal: str = Field(default=UNSEALED, alias="hlap_seal", pattern="^[0-9a-f]{64}$")


class Statement(_Part):
    """A claim about files."""

    type_: Literal["https://in-toto.io/Statement/v1"] = Field(default=STATEMENT_TYPE, alias="_type")
    subject: tuple[Resource, ...]
    predicate_type: Literal["https://slsa.dev/provenance/v1"] = PREDICATE_TYPE
    predicate: Predicate


def sealed_text(statement: Statement) -> str:
    """The statement as JSON, sealed."""
    text = statement.model_dump_json(by_alias=True, indent=2) + "\n"
    return text.replace(UNSEALED, _sha256(text), 1)


def parse_sealed(text: str) -> Statement:
    """The statement in a sealed text.

    Raises:
        ValueError: not a statement of ours, or not as it was sealed.
    """
    statement = Statement.model_validate_json(text)
    if _sha256(text.replace(statement.predicate.seal, UNSEALED, 1)) != statement.predicate.seal:
        raise ValueError("changed since it was written: its seal doesn't fit")
    return statement


def dir_hash(sha256_by_name: Mapping[str, str]) -> str:
    """Digest of a folder by those of its files: in-toto's "dirHash", which is Go's Hash1 in hexadecimal.

    `sha256sum` of the names in byte order, piped into `sha256sum`, gives the same.
    """
    ordered = sorted(sha256_by_name, key=str.encode)
    return _sha256("".join(f"{sha256_by_name[name]}  {name}\n" for name in ordered))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
