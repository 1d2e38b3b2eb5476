"""The side file of a plan: the weights of its linear layers and refitted MLPs, as safetensors in float32.

Names, with D hidden, F mlp, H*E all query heads, and R the rank of a linear map:

    fitted.{layer}.o_proj.weight     [D, R]; a full matrix is [D, D]
    fitted.{layer}.o_proj.bias       [D]
    fitted.{layer}.v_proj.weight     [R, D], of form "low_rank" alone
    fitted.{layer}.attention.weight  [D, H*E], the new o_proj of attention that stays
    fitted.{layer}.mlp.weight        [D, F], the new down_proj

Where a norm follows the attention and the MLP, the last two are its new gain, [D].
"""

from __future__ import annotations

import shutil
from pathlib import Path

from hlap_export.artifacts import file_written_whole
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.checkpoint.tensors import CheckpointTensors, read_shard
from hlap_export.digests import file_sha256
from hlap_export.errors import PlanError
from hlap_export.plan.pruning_plan import Linear, PruningPlan, RefitAttention, RefitMlp


def side_file_of(plan: Path) -> Path:
    """Where the fitted weights of the plan in this file are: plan.json -> plan.safetensors."""
    return plan.with_suffix(".safetensors")


def fitted_name(layer: int, part: str) -> str:
    """The name of a fitted tensor; `part` is such as "o_proj.weight"."""
    return f"fitted.{layer}.{part}"


def fitted_shapes(plan: PruningPlan, layout: ModelLayout) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the plan's side file holds."""
    hidden = layout.hidden_size
    shapes: dict[str, tuple[int, ...]] = {}
    for index, attention in enumerate(plan.attention):
        if isinstance(attention, Linear):
            shapes[fitted_name(index, "o_proj.weight")] = (hidden, attention.rank)
            shapes[fitted_name(index, "o_proj.bias")] = (hidden,)
            if attention.form == "low_rank":
                shapes[fitted_name(index, "v_proj.weight")] = (attention.rank, hidden)
        has_gain, queries = layout.family.has_post_norms, layout.num_heads * layout.head_dim
        if isinstance(attention, RefitAttention):
            shapes[fitted_name(index, "attention.weight")] = (hidden,) if has_gain else (hidden, queries)
        if isinstance(plan.mlp.get(index), RefitMlp):
            shapes[fitted_name(index, "mlp.weight")] = (hidden,) if has_gain else (hidden, layout.intermediate_size)
    return shapes


def copy_side_file(source: Path, plan: PruningPlan, target: Path) -> None:
    """Put the plan's fitted weights, if it has any, beside a copy of the plan.

    Raises:
        PlanError: they aren't in `source`, or never were fitted.
        OutputError: the disk is full.
    """
    if plan.fits:
        _require_intact(source, plan)
        with file_written_whole(target) as partial:
            shutil.copyfile(source, partial)


def side_file_damage(path: Path, plan: PruningPlan) -> str | None:
    """What is wrong with the plan's fitted weights in this file, in words; None for a plan without any."""
    if not plan.fits or plan.fitted is None:
        return None
    if not path.is_file():
        return "its fitted weights are gone"
    return None if file_sha256(path) == plan.fitted.sha256 else "its fitted weights were changed"


def open_side_file(path: Path | None, plan: PruningPlan, layout: ModelLayout) -> CheckpointTensors | None:
    """The plan's fitted tensors, headers read and the whole file checked; None for a plan without any.

    Raises:
        PlanError: no file, another one than the plan was saved with, or parts that were never fitted.
        CheckpointError: the file is damaged.
    """
    if not plan.fits:
        return None
    path = _require_intact(path, plan)
    shard = read_shard(path)
    found = {record.name: record.shape for record in shard.tensors}
    expected = fitted_shapes(plan, layout)
    if found != expected:
        wrong = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        raise PlanError(
            where=f"{path}, {wrong[0]}",
            expected=f"shape {expected[wrong[0]]}" if wrong[0] in expected else "no such tensor",
            found=f"shape {found[wrong[0]]}" if wrong[0] in found else "none",
            fix="make the plan again",
        )
    return CheckpointTensors(folder=path.parent, shards=(shard,))


def _require_intact(path: Path | None, plan: PruningPlan) -> Path:
    if plan.fitted is None:
        raise PlanError(
            where="the plan",
            expected="linear layers and refitted MLPs with their weights",
            found="a plan whose weights were never fitted",
            fix="let `hlap-export plan` fit them",
        )
    if path is None or not path.is_file():
        raise PlanError(
            where="the plan's fitted weights",
            expected="the side file that was saved beside the plan (plan.json has plan.safetensors)",
            found="no such file" if path is None else f"no file {path}",
            fix="keep the two files together, or make the plan again",
        )
    if file_sha256(path) != plan.fitted.sha256:
        raise PlanError(
            where=str(path),
            expected=f"the file that the plan was saved with (sha256 {plan.fitted.sha256[:12]}...)",
            found="another one, or a damaged one",
            fix="keep the two files together, or make the plan again",
        )
    return path
