"""What a compiler made of each engine, from the engines' manifests; only TensorRT's tell."""

from __future__ import annotations

import re
from pathlib import Path

from hlap_export.artifacts import Manifest, read_manifest
from hlap_export.report import wording
from hlap_export.report.summary import ENGINE_ON_DISK, KV_CACHE, EngineBuild, PhaseBuild, Size

_KV_INPUT = re.compile(r"input past_key_values\.")


def build_rows(engines: dict[str, Path]) -> tuple[EngineBuild, ...]:
    """One row for each engine; none for engines whose compiler doesn't say what it made."""
    manifests = {name: read_manifest(folder, kind="engine") for name, folder in engines.items()}
    return tuple(_row(name, manifest) for name, manifest in manifests.items() if "compiler" in manifest.facts)


def _row(name: str, manifest: Manifest) -> EngineBuild:
    facts, capacity = manifest.facts, int(manifest.parameters["capacity"])
    plans = facts["plans"].values()
    return EngineBuild(
        name=name,
        compiler=facts["compiler"],
        size_bytes=sum(plan["size_bytes"] for plan in plans),
        build_seconds=facts["build_seconds"],
        capacity=capacity,
        kv_bytes_per_row=facts["kv_bytes_per_row"],
        num_kv_bindings=len({binding for plan in plans for binding in plan["bindings"] if _KV_INPUT.match(binding)}),
        phases=tuple(
            PhaseBuild(
                phase=phase,
                num_kernels=made["num_kernels"],
                num_fused_attention=len(made["fused_attention_layers"]),
            )
            for phase, made in facts["phases"].items()
            if made["num_kernels"] is not None  # else the compiler didn't list them
        ),
    )


def built_sizes(engines: dict[str, Path]) -> tuple[Size, ...]:
    """What engines cost that couldn't be timed: as counted, not as measured."""
    manifests = {name: read_manifest(folder, kind="engine") for name, folder in engines.items()}
    per_token = {name: int(manifest.facts["kv_bytes_per_token"]) for name, manifest in manifests.items()}
    on_disk = {
        name: sum(record.size_bytes for record in manifest.files.values()) for name, manifest in manifests.items()
    }
    return (
        Size(name=KV_CACHE, unit="bytes", **per_token),
        Size(name=ENGINE_ON_DISK, unit="bytes", **on_disk),
    )


def build_table(builds: tuple[EngineBuild, ...]) -> list[tuple[str, list[str]]]:
    """What is told of each engine, in words: a name, and a cell for each of `builds`."""
    if not builds:
        return []
    rows = [
        (f"{builds[0].compiler} builds it in", [f"{build.build_seconds:.1f} s" for build in builds]),
        ("plan size", [wording.in_bytes(build.size_bytes) for build in builds]),
    ]
    for phases in zip(*(build.phases for build in builds), strict=True):
        rows.append((f"{phases[0].phase} kernels", [str(made.num_kernels) for made in phases]))
        rows.append(("  a layer's whole attention", [str(made.num_fused_attention) for made in phases]))
    return [
        *rows,
        ("KV cache inputs", [str(build.num_kv_bindings) for build in builds]),
        (
            f"KV cache per row, {builds[0].capacity} tokens",
            [wording.in_bytes(build.kv_bytes_per_row) for build in builds],
        ),
    ]
