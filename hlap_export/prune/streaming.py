"""Turn a dense checkpoint and a plan into a pruned Hugging Face checkpoint, streaming shard by shard.

Peak memory is that of one folded weight, whatever the model's size: unchanged tensors are copied as bytes, a chunk at a
time, and each changed tensor is computed when its turn to be written comes, in float64, then stored in its own dtype.
Every byte is read once: what is read for copying is hashed for the manifest on the way, and so is what is written.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from hlap_export.artifacts import Manifest, digest_of, package_versions, write_manifest
from hlap_export.checkpoint import remote_code
from hlap_export.checkpoint.digest import OTHER_WEIGHTS, model_digest
from hlap_export.checkpoint.layout import ModelLayout, read_config, read_layout
from hlap_export.checkpoint.loading import check_weights
from hlap_export.checkpoint.shards import write_shard
from hlap_export.checkpoint.tensors import INDEX_FILE
from hlap_export.digests import remember_sha256
from hlap_export.fold.edits import layer_edits
from hlap_export.manifest import FILE_DIGEST
from hlap_export.on_progress import OnProgress, Steps, ignore_progress
from hlap_export.plan.accounting import count_parameters
from hlap_export.plan.pruning_plan import PruningPlan, validate_plan
from hlap_export.plan.side_file import open_side_file
from hlap_export.prune.card import model_card
from hlap_export.prune.config import pruned_config
from hlap_export.prune.edited_shards import OutputShard, output_shards
from hlap_export.resumable import ResumableFolder, resumable

PLAN_FILE = "plan.json"
CARD_FILE = "README.md"
# Weights in any format, other people's code, and a model card that describes the dense model stay behind.
NOT_COPIED = OTHER_WEIGHTS | {".safetensors", ".py"}
NOT_COPIED_NAMES = {"config.json", INDEX_FILE, "pytorch_model.bin.index.json", CARD_FILE, "manifest.json"}


def prune(
    model: Path,
    plan: PruningPlan,
    out: Path,
    *,
    fitted: Path | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Manifest:
    """Write the pruned checkpoint: safetensors, config.json with remote code, tokenizer, the plan, a manifest.

    Killed or failed halfway, it goes on after the last finished shard when it is asked for the same again.

    Args:
        model: the dense checkpoint folder.
        plan: a plan made for it.
        out: a new or empty folder.
        fitted: the plan's side file, where it has fitted parts (`side_file_of(plan_path)`).
        on_progress: called with (bytes written, bytes in all) after each tensor.

    Raises:
        CheckpointError: the dense checkpoint is unreadable, or config and weights disagree.
        PlanError: the plan is for another model, can't be built, or isn't what `fitted` belongs to.
        OutputError: `out` isn't free, or the disk is full.
    """
    layout = read_layout(model)
    validate_plan(plan, layout)
    tensors = check_weights(model)
    side_file = open_side_file(fitted, plan, layout)
    shards = output_shards(tensors, layer_edits(plan, layout), side_file)
    with resumable(out, request=_request(model, plan)) as unfinished:
        _write_shards(model, shards, unfinished, on_progress)
        folder = unfinished.folder
        _write_index(shards, folder)
        _write_config(model, plan, layout, folder)
        (folder / remote_code.MODELING_FILE).write_text(remote_code.source(layout.family), encoding="utf-8")
        (folder / PLAN_FILE).write_text(plan.to_json(), encoding="utf-8")
        (folder / CARD_FILE).write_text(model_card(plan, layout), encoding="utf-8")
        _copy_companions(model, folder)
        return write_manifest(
            folder,
            kind="checkpoint",
            parameters={"plan": plan.model_dump(mode="json", exclude={"search", "curves"})},
            inputs={
                "model": model_digest(model),
                **({"fitted": f"{FILE_DIGEST}{plan.fitted.sha256}"} if plan.fitted else {}),
            },
            facts={"parameters": count_parameters(layout, plan).as_facts()},
            known=unfinished.files,
        )


def _request(model: Path, plan: PruningPlan) -> str:
    """Digest of all that decides the result, the model's weights by the identity and time of their files."""
    stats = {path.name: path.stat() for path in model.iterdir() if path.is_file()}
    files = {name: [stat.st_ino, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return digest_of({"plan": plan.model_dump(mode="json"), "model": files, "versions": package_versions()})


def _write_shards(
    model: Path, shards: tuple[OutputShard, ...], unfinished: ResumableFolder, on_progress: OnProgress
) -> None:
    """Write the shards that aren't finished; what is known of the others' inputs needn't be read again."""
    steps = Steps(sum(shard.size_bytes for shard in shards), on_progress)
    for shard in shards:
        path = model / shard.name
        if sha256 := unfinished.inputs.get(shard.name):
            remember_sha256(path, sha256, since=path.stat())
            steps.advance(shard.size_bytes)
            continue
        with shard.source:
            if shard.tensors:  # it may have held nothing but queries and keys
                with unfinished.new_file(shard.name) as file:
                    for written in write_shard(file, shard.tensors, shard.metadata):
                        steps.advance(written.size_bytes)
            unfinished.finish_input(shard.name, shard.source.sha256())


def _write_index(shards: tuple[OutputShard, ...], out: Path) -> None:
    if len(shards) > 1:
        weight_map = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
        total = sum(shard.size_bytes for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (out / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_companions(model: Path, out: Path) -> None:
    """Copy what belongs to a model besides weights and config: tokenizer, generation config, licence."""
    for path in sorted(model.iterdir()):
        is_companion = path.is_file() and path.suffix not in NOT_COPIED and path.name not in NOT_COPIED_NAMES
        if is_companion and not (out / path.name).exists():
            shutil.copyfile(path, out / path.name)


def _write_config(model: Path, plan: PruningPlan, layout: ModelLayout, out: Path) -> None:
    config = pruned_config(read_config(model), plan, layout)
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
