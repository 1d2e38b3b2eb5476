"""What is this folder or file? A checkpoint, a plan, an export, an engine, a bundle or a run, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from hlap_export.artifacts import MANIFEST, Manifest, is_intact, read_manifest
from hlap_export.checkpoint import ModelLayout, read_config, read_layout
from hlap_export.checkpoint.tensors import open_tensors
from hlap_export.errors import ArtefactError, CheckpointError
from hlap_export.export.precision import precision_of
from hlap_export.plan.accounting import count_parameters
from hlap_export.plan.curve import Curve
from hlap_export.plan.pruning_plan import Keep, KeepHeads, Linear, PruningPlan, RefitAttention, Skip, load_plan
from hlap_export.report.compose import layer_rows
from hlap_export.report.summary import LayerRow, Summary

Kind = Literal["dense checkpoint", "pruned checkpoint", "plan", "ONNX export", "engine", "bundle", "run"]
ITEMSIZE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
SUMMARY = "summary.json"
PLAN = "plan.json"


class Inspection(BaseModel):
    """An artefact described: what it is, its layers, what it costs, and where it comes from.

    Attributes:
        facts: sizes and counts, units in their names.
        is_intact: whether every file is what the manifest says; None where there is no manifest.
        made_from: digests of the inputs, from the manifest.
        summary: of a run only.
        curves: of a plan that was searched on the way from the dense model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    kind: Kind
    family: str
    layers: tuple[LayerRow, ...]
    facts: dict[str, Any]
    is_intact: bool | None = None
    parameters: dict[str, Any] = {}
    made_from: dict[str, str] = {}
    versions: dict[str, str] = {}
    machine: dict[str, Any] = {}
    summary: Summary | None = None
    curves: tuple[Curve, ...] = ()


def inspect(path: Path, *, check_files: bool = True) -> Inspection:
    """Describe an artefact without loading its weights.

    Args:
        path: of the artefact.
        check_files: whether its files are read and compared with the manifest; without, `is_intact` is None.

    Raises:
        ArtefactError: nothing there, or nothing that hlap-export knows.
        CheckpointError, PlanError: it looks like one but can't be read.
    """
    if path.is_file() and path.suffix == ".json":
        return inspect_plan(path)
    if (path / SUMMARY).is_file() and (path / PLAN).is_file():
        return _inspect_run(path)
    if (path / MANIFEST).is_file():
        return _inspect_artefact(path, read_manifest(path), check_files)
    if (path / "config.json").is_file():
        return _describe(path, "dense checkpoint" if read_layout(path).is_dense else "pruned checkpoint", None, False)
    raise ArtefactError(
        where=str(path),
        expected="a checkpoint folder, a plan, an export, an engine, or the folder of a finished run",
        found=_what_lies_there(path),
        fix="pass the path of one of these",
    )


def _inspect_artefact(path: Path, manifest: Manifest, check_files: bool) -> Inspection:
    kinds: dict[str, Kind] = {
        "checkpoint": "pruned checkpoint",
        "onnx": "ONNX export",
        "engine": "engine",
        "bundle": "bundle",
    }
    if manifest.kind not in kinds:
        raise ArtefactError(
            where=str(path), expected=f"a kind among {', '.join(kinds)}", found=manifest.kind, fix="pass another path"
        )
    return _describe(path, kinds[manifest.kind], manifest, check_files)


def _describe(path: Path, kind: Kind, manifest: Manifest | None, check_files: bool) -> Inspection:
    layout = read_layout(path)
    is_checkpoint = kind.endswith("checkpoint")
    plan = load_plan(path / PLAN) if (path / PLAN).is_file() else None
    facts: dict[str, Any] = {"size_bytes": folder_size_bytes(path)}
    if is_checkpoint:
        facts["num_parameters"] = count_checkpoint_parameters(path)
    dtype = str((manifest.parameters.get("dtype") if manifest else None) or _checkpoint_dtype(path))
    facts |= {"dtype": dtype, "kv_bytes_per_token": kv_bytes_per_token(layout, precision_of(dtype).activations)}
    if manifest is None:
        return Inspection(
            path=str(path), kind=kind, family=layout.family.model_type, layers=layer_rows(layout, plan), facts=facts
        )
    counted = {name: value for name, value in manifest.facts.items() if isinstance(value, int | float | str)}
    if "attention" in manifest.facts:
        counted["attention_kernels"] = _kernels_in_words(manifest.facts["attention"])
    return Inspection(
        path=str(path),
        kind=kind,
        family=layout.family.model_type,
        layers=layer_rows(layout, plan),
        facts=facts | counted,
        is_intact=is_intact(path, manifest) if check_files else None,
        parameters={name: value for name, value in manifest.parameters.items() if name != "plan"},
        made_from=manifest.inputs,
        versions=manifest.versions,
        machine=manifest.machine,
    )


def _kernels_in_words(forms: Sequence[Mapping[str, Any]]) -> str:
    """How many layers have a compiler's best kernels, and why the others haven't."""
    layers: dict[str, list[str]] = {}
    for form in forms:
        layers.setdefault(form["reason"], []).append(str(form["layer"]))
    best = len(layers.pop("", []))
    others = [f"layer{'s' * (len(those) > 1)} {', '.join(those)}: {reason}" for reason, those in layers.items()]
    return "; ".join([f"{best} of {len(forms)} layers have the best", *others])


def inspect_plan(path: Path, layout: ModelLayout | None = None) -> Inspection:
    """Describe a plan file; with the layout of its model, also what it removes."""
    plan = load_plan(path)
    facts: dict[str, Any] = {"method": plan.method, "num_layers": len(plan.attention)}
    if layout is not None:
        facts |= count_parameters(layout, plan).as_facts()
    if plan.fitted is not None:
        facts |= {"fitted_parts": len(plan.fitted.parts), "fitted_bytes": plan.fitted.size_bytes}
        if plan.fitted.tuning is not None:
            facts |= {f"tuning_{name}": value for name, value in plan.fitted.tuning.model_dump().items()}
    if plan.search is not None:
        facts |= {f"text_{name}": value for name, value in plan.search.text.model_dump().items()}
        facts |= plan.search.model_dump(
            include={"perplexity_dense", "perplexity_planned", "perplexity_all_ones", "perplexity_all_dropped"},
            exclude_none=True,
        )
    return Inspection(
        path=str(path),
        kind="plan",
        family=plan.model.model_type,
        layers=_planned_rows(plan),
        facts=facts,
        curves=plan.curves,
    )


def _planned_rows(plan: PruningPlan) -> tuple[LayerRow, ...]:
    """The layers as they will be, from a plan alone."""
    model, rows = plan.model, list[LayerRow]()
    for index, attention in enumerate(plan.attention):
        heads, kv_heads = model.num_heads, model.num_kv_heads
        if isinstance(attention, KeepHeads):
            heads = len(attention.query_heads)
            kv_heads = len(attention.kv_groups(model.num_heads // model.num_kv_heads))
        elif isinstance(attention, Linear | Skip):
            heads = kv_heads = 0
        mlp = plan.mlp.get(index)
        rows.append(
            LayerRow(
                layer=index,
                attention="full" if isinstance(attention, Keep | RefitAttention | KeepHeads) else attention.kind,
                num_heads=heads,
                num_kv_heads=kv_heads,
                alpha=plan.alphas.get(index),
                is_pruned=not isinstance(attention, Keep | RefitAttention) or mlp is not None,
                mlp=mlp.kind if mlp else "keep",
            )
        )
    return tuple(rows)


def _inspect_run(path: Path) -> Inspection:
    summary = Summary.model_validate_json((path / SUMMARY).read_text(encoding="utf-8"))
    return Inspection(
        path=str(path),
        kind="run",
        family=summary.family,
        layers=summary.layers,
        facts={"size_bytes": folder_size_bytes(path), "model": summary.model, "passed": summary.passed},
        versions=summary.versions,
        machine=summary.machine,
        summary=summary,
    )


def folder_size_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_checkpoint_parameters(checkpoint: Path) -> int | None:
    """Numbers in a checkpoint's tensors, tied ones once; from the headers alone. None where there are no weights."""
    try:
        return sum(math.prod(record.shape) for record in open_tensors(checkpoint).by_name.values())
    except CheckpointError:
        return None


def kv_bytes_per_token(layout: ModelLayout, dtype: str) -> int:
    """What one more token of context costs in the cache, keys and values of all layers."""
    return sum(2 * layer.num_kv_heads * layout.head_dim * ITEMSIZE_BYTES[dtype] for layer in layout.cached_layers)


def _checkpoint_dtype(checkpoint: Path) -> str:
    config = read_config(checkpoint)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return dtype if dtype in ITEMSIZE_BYTES else "float32"


def _what_lies_there(path: Path) -> str:
    if path.is_dir():
        return "a folder with neither manifest.json nor config.json"
    return "some other file" if path.exists() else "nothing there"
