"""A manifest as tools of the supply chain read it, and what its seal notices."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from hlap_export.artifacts import Manifest, file_records, folder_digest
from hlap_export.digests import FileRecord
from hlap_export.statement import dir_hash

MANIFEST = Manifest(
    kind="engine",
    parameters={"engine": "onnxruntime"},
    inputs={"onnx": "ab" * 32, "weights": f"sha256:{'cd' * 32}"},
    versions={"hlap-export": "0.1.0"},
    machine={"cores": 2},
    facts={"size_bytes": 8, "µ": "text"},
    files={"model.onnx": FileRecord(sha256="ef" * 32, size_bytes=8)},
)


def test_a_manifest_is_an_in_toto_statement_with_slsa_provenance() -> None:
    """The fields that the two specifications require, by their names."""
    statement = json.loads(MANIFEST.to_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    assert statement["subject"] == [
        {"name": "model.onnx", "digest": {"sha256": "ef" * 32}, "annotations": {"size_bytes": 8}}
    ]
    asked, made = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert asked["buildType"] == "urn:hlap-export:stage:engine"
    assert asked["externalParameters"] == {"engine": "onnxruntime"}
    digests = {each["name"]: each["digest"] for each in asked["resolvedDependencies"]}
    assert digests == {"onnx": {"dirHash": "ab" * 32}, "weights": {"sha256": "cd" * 32}}
    assert re.fullmatch(r"[a-z]+:.+", made["builder"]["id"])
    assert made["builder"]["version"] == {"hlap-export": "0.1.0"}


def test_what_is_read_is_what_was_written() -> None:
    assert Manifest.from_text(MANIFEST.to_text()) == MANIFEST


def test_the_same_manifest_has_the_same_bytes() -> None:
    assert MANIFEST.to_text() == Manifest.from_text(MANIFEST.to_text()).to_text()


def test_every_changed_byte_is_noticed() -> None:
    text = MANIFEST.to_text()
    for at, old in enumerate(text):
        changed = text[:at] + ("1" if old != "1" else "2") + text[at + 1 :]
        with pytest.raises(ValueError):  # noqa: PT011 - bad JSON, a bad field, or a seal that doesn't fit
            Manifest.from_text(changed)


@pytest.mark.parametrize("change", [lambda text: text + "\n", lambda text: text.replace("  ", " ", 1)])
def test_space_that_means_nothing_is_noticed_too(change: object) -> None:
    with pytest.raises(ValueError, match="its seal doesn't fit"):
        Manifest.from_text(change(MANIFEST.to_text()))  # type: ignore[operator]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum isn't installed")
def test_a_folders_digest_is_what_a_shell_computes(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.bin", "Upper", "a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    command = "find . -type f | sed 's|^./||' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert folder_digest(tmp_path) == done.stdout.split()[0]
    assert dir_hash({name: record.sha256 for name, record in file_records(tmp_path).items()}) == done.stdout.split()[0]
