"""What is asked of a build, and whether an engine that is there already answers it."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hlap_export.artifacts import MANIFEST, Manifest, package_versions, partial_folder, read_manifest, written_whole
from hlap_export.engines.base import Backend, Tunable
from hlap_export.engines.trt.options import OPTION_NAMES
from hlap_export.errors import ArtefactError

INHERITED_PARAMETERS = ("flavour", "dtype", "block_size")
DECIDING_PACKAGES = ("hlap-export", "onnxruntime", "onnxruntime-gpu", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """All that decides an engine.

    Attributes:
        parameters: the engine's name and its options, and what the export hands down.
        inputs: the export's digest.
        versions: of the packages that compile.
    """

    parameters: dict[str, Any]
    inputs: dict[str, str]
    versions: dict[str, str]

    @classmethod
    def of(cls, backend: Backend, source: Manifest, source_digest: str) -> Self:
        """The request to compile an export with a backend."""
        inherited = {name: source.parameters[name] for name in INHERITED_PARAMETERS if name in source.parameters}
        options = backend.parameters() if isinstance(backend, Tunable) else {}
        return cls(
            parameters={"engine": backend.name, **inherited, **options},
            inputs={"onnx": source_digest},
            versions=_deciding(package_versions()),
        )

    def why_not(self, earlier: Manifest) -> str | None:
        """What an earlier engine was built differently: "capacity 4096 -> 8192"; None if it wasn't."""
        decides = {*self.parameters, *OPTION_NAMES}
        known = {name: value for name, value in earlier.parameters.items() if name in decides}
        changes = [
            *_changes(known, self.parameters),
            *(["the export is another one"] if earlier.inputs != self.inputs else []),
            *_changes(_deciding(earlier.versions), self.versions),
        ]
        return ", ".join(changes) or None


def earlier_engine(out: Path) -> Manifest | None:
    """The manifest of the engine that a folder holds; None where it holds none."""
    if not (out / MANIFEST).is_file():
        return None
    try:
        return read_manifest(out, kind="engine")
    except ArtefactError:
        return None


@contextmanager
def replaced_whole(out: Path) -> Generator[Path]:
    """A folder to write into that takes the place of `out` when the block ends well; else `out` stays as it is."""
    replacement = partial_folder(out).with_suffix(".new")
    shutil.rmtree(replacement, ignore_errors=True)
    with written_whole(replacement) as folder:
        yield folder
    shutil.rmtree(out)
    replacement.rename(out)


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"{name} {_in_words(old.get(name))} -> {_in_words(new.get(name))}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _in_words(value: Any) -> str:
    return "off" if value is None else "on" if value is True else str(value)


def _deciding(versions: dict[str, str]) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name in DECIDING_PACKAGES}
