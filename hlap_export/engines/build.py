"""Build an engine folder from an export, and open one: what all engines share."""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, cast

from hlap_export.artifacts import (
    MANIFEST,
    Manifest,
    disk_full,
    folder_digest,
    is_intact,
    read_manifest,
    write_manifest,
    written_whole,
)
from hlap_export.engines.base import (
    GRAPH,
    ITEMSIZE_BYTES,
    Backend,
    Session,
    Tunable,
    kv_bytes_per_token,
    usable_cores,
)
from hlap_export.engines.request import Request, earlier_engine, replaced_whole
from hlap_export.engines.trt.options import TensorRTOptions
from hlap_export.errors import ArtefactError, BackendMissing


def ignore_note(note: str) -> None:
    """Tell nobody."""


def build(
    export_dir: Path,
    out: Path,
    *,
    engine: str = "onnxruntime",
    options: TensorRTOptions | None = None,
    tell: Callable[[str], None] = ignore_note,
) -> Manifest:
    """Compile an exported ONNX folder into a self-contained engine folder.

    Tokenizer, config and generation config are copied along. Where the engine can run, it is opened once before the
    folder appears, so that what appears is known to load; its cache layout goes into the manifest's facts.

    An engine that `out` holds already is kept where the same request made it, else replaced.

    Args:
        export_dir: what `hlap-export export` wrote.
        out: the engine folder: new, empty, or an earlier engine.
        engine: the name of one of `backends()`.
        options: what an engine of TensorRT is built for; None for the defaults.
        tell: where to say whether an earlier engine was reused, or why not.

    Raises:
        ArtefactError: `export_dir` isn't an export, was changed since, or the engine can't compile it.
        BackendMissing: the engine is unknown or can't run here.
        OutputError: `out` holds something else or can't be written, or the disk is too full for it.
    """
    backend = usable_backend(engine)
    source = read_manifest(export_dir, kind="onnx")
    if not is_intact(export_dir, source):
        raise _changed(export_dir, "export the checkpoint again")
    backend = _tuned(backend, options, source)
    request = Request.of(backend, source, folder_digest(export_dir))
    earlier = earlier_engine(out)
    if earlier is not None:
        reason = request.why_not(earlier) or (None if is_intact(out, earlier) else "its files were changed")
        if reason is None:
            tell(f"{out}: reused, the same request made it")
            return earlier
        tell(f"rebuilt because: {reason}")
    with replaced_whole(out) if earlier else written_whole(out) as folder:
        return _built(export_dir, folder, backend, request, source)


def _built(export_dir: Path, folder: Path, backend: Backend, request: Request, source: Manifest) -> Manifest:
    # Asked beforehand, since compilers report a full disk in words of their own, or not at all.
    if shutil.disk_usage(folder).free < sum(record.size_bytes for record in source.files.values()):
        raise disk_full(folder)
    started = time.perf_counter()
    compiled = backend.compile(export_dir, folder)
    build_seconds = time.perf_counter() - started
    for name in source.files:
        if not name.startswith(GRAPH):
            _copy(export_dir / name, folder / name)
    made = write_manifest(
        folder,
        kind="engine",
        parameters={**request.parameters, **compiled.parameters},
        inputs=request.inputs,
        facts={**compiled.facts, "build_seconds": round(build_seconds, 3)},
    )
    return made if backend.why_not_runnable() else _tried(folder, backend, made)


def _tried(folder: Path, backend: Backend, made: Manifest) -> Manifest:
    """Open a new engine, by the manifest that it has already, and add to that what the session says of itself."""
    with backend.open(folder, threads=usable_cores()) as session:
        facts = _session_facts(session)
    return write_manifest(
        folder,
        kind=made.kind,
        parameters=made.parameters,
        inputs=made.inputs,
        facts={**made.facts, **facts},
        known=made.files,
    )


def _tuned(backend: Backend, options: TensorRTOptions | None, source: Manifest) -> Backend:
    if isinstance(backend, Tunable):
        return backend.tuned(options, source)
    if options is not None:
        raise ArtefactError(
            where=f"engine {backend.name!r}",
            expected="no options of TensorRT",
            found="some",
            fix="leave them out, or build with --engine tensorrt or tensorrt-rtx",
        )
    return backend


@dataclass(frozen=True, kw_only=True, slots=True)
class StandIn:
    """What computes the same graphs where an engine can be built but not run.

    Attributes:
        engine: the name of one that can.
        dtype: of the graphs that it can run: theirs, or float32.
        reason: why, in a sentence.
    """

    engine: Literal["onnxruntime"]
    dtype: Literal["float32", "float16"]
    reason: str


def stand_in(engine: str, dtype: str) -> StandIn | None:
    """What to verify in place of an engine that can't run here; None if it can."""
    problem = usable_backend(engine).why_not_runnable()
    if problem is None:
        return None
    runnable = "float16" if dtype == "float16" else "float32"  # what it computes on a CPU
    graphs = "their ONNX graphs" if runnable == dtype else f"the same graphs in {runnable}"
    return StandIn(
        engine="onnxruntime",
        dtype=runnable,
        reason=f"engines of {engine} can't run here ({problem.found}): {graphs} were verified in ONNX Runtime instead, "
        "and nothing was timed",
    )


def open_session(engine_dir: Path, *, threads: int | None = None) -> Session:
    """Load an engine; use it in a `with` block.

    Args:
        engine_dir: what `build` wrote.
        threads: CPU threads of one operator; None takes every core that this process may use.

    Raises:
        ArtefactError: the folder isn't an engine, or its files can't be loaded.
        BackendMissing: its engine can't run here.
    """
    manifest = read_manifest(engine_dir, kind="engine")
    backend = usable_backend(str(manifest.parameters.get("engine")))
    if problem := backend.why_not_runnable():
        raise BackendMissing(
            where=str(engine_dir),
            expected=f"a machine that can run engines of {backend.name}",
            found=problem.found,
            fix=problem.fix,
        )
    return backend.open(engine_dir, threads=threads or usable_cores())


def require_intact(engine_dir: Path) -> Manifest:
    """The engine's manifest, when every file is byte for byte what it says.

    Raises:
        ArtefactError: the folder isn't an engine, or a file was changed, added or removed.
    """
    manifest = read_manifest(engine_dir, kind="engine")
    if not is_intact(engine_dir, manifest):
        raise _changed(engine_dir, "build the engine again")
    return manifest


@cache
def backends() -> dict[str, Backend]:
    """The engines that this version knows, installed or not, by name."""
    found: dict[str, Backend] = {}
    for module_info in sorted(pkgutil.iter_modules([str(Path(__file__).parent)]), key=lambda info: info.name):
        module = importlib.import_module(f"{__package__}.{module_info.name}")
        if hasattr(module, "BACKEND"):
            backend = cast(Backend, module.BACKEND)
            found[backend.name] = backend
    return found


def usable_backend(name: str) -> Backend:
    """The engine of that name, if it can run here.

    Raises:
        BackendMissing: unknown, not installed, or not working on this machine.
    """
    backend = backends().get(name)
    if backend is None:
        raise BackendMissing(
            where=f"engine {name!r}",
            expected=f"one that this version can build: {', '.join(backends())}",
            found="none of that name",
            fix=f"use --engine {next(iter(backends()))}",
        )
    if problem := backend.why_unavailable():
        usable = [other for other, candidate in backends().items() if candidate.why_unavailable() is None]
        raise BackendMissing(
            where=f"engine {name!r}",
            expected="a working installation on this machine",
            found=f"{problem.found} (engines that work here: {', '.join(usable) or 'none'})",
            fix=problem.fix,
        )
    return backend


def _session_facts(session: Session) -> dict[str, object]:
    return {
        "provider": session.provider,
        "vocab_size": session.vocab_size,
        "kv_layers": [
            {"index": layer.index, "num_kv_heads": layer.num_kv_heads, "head_dim": layer.head_dim}
            for layer in session.kv_layers
        ],
        "kv_bytes_per_token": kv_bytes_per_token(session.kv_layers, ITEMSIZE_BYTES[session.dtype]),
    }


def _copy(source: Path, target: Path) -> None:
    if source.name == MANIFEST:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _changed(folder: Path, fix: str) -> ArtefactError:
    return ArtefactError(
        where=str(folder), expected="the files that its manifest lists", found="different bytes or files", fix=fix
    )
