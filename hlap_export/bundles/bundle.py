"""The bundle stage: an engine folder becomes a folder that a serving stack loads as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hlap_export.artifacts import Manifest, folder_digest, require_free, write_manifest, written_whole
from hlap_export.bundles import ort_genai
from hlap_export.engines import require_intact
from hlap_export.errors import BundleError

INHERITED_PARAMETERS = ("engine", "flavour", "dtype", "provider")

Complete = Callable[[Path, Path, Manifest], dict[str, Any]]
"""(folder with the engine's files, engine folder, its manifest) -> facts; adds what the target wants beside them."""

TARGETS: Mapping[str, Complete] = {"ort-genai": ort_genai.complete}


def bundle(engine_dir: Path, out: Path, *, target: str = "ort-genai") -> Manifest:
    """Write a folder that a serving stack loads: the engine's files and the stack's own.

    Everything is copied. Hard links would save the room, but onnx refuses external data that has a second link
    (it may reach outside the model's folder), and would then refuse the engine's own as well.

    Args:
        engine_dir: what `build` wrote.
        out: the bundle's folder, new or empty.
        target: which stack, one of `TARGETS`.

    Raises:
        BundleError: an unknown target, or an engine that the stack can't hold or computes otherwise.
        ArtefactError: `engine_dir` isn't an engine, or was changed since.
        OutputError: `out` isn't empty or can't be written.
    """
    if target not in TARGETS:
        raise BundleError(
            where="--target", expected=f"one of: {', '.join(TARGETS)}", found=repr(target), fix="choose one of these"
        )
    require_free(out)
    engine = require_intact(engine_dir)
    with written_whole(out) as folder:
        for name in engine.files:
            _copy(engine_dir / name, folder / name)
        facts = TARGETS[target](folder, engine_dir, engine)
        inherited = {name: engine.parameters[name] for name in INHERITED_PARAMETERS if name in engine.parameters}
        return write_manifest(
            folder,
            kind="bundle",
            parameters={"target": target, **inherited},
            inputs={"engine": folder_digest(engine_dir)},
            facts=facts,
        )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
