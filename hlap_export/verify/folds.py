"""Are the folded weights right? Each pruned layer against the dense one that does what the plan says, unfolded.

The dense layer attends under a mask that lets each token see itself alone, what comes out is multiplied by alpha, and
dropped heads are set to zero: nothing of the code that folds is used. Both get the same input, the pruned model's own
residual stream, so that the error of a layer is its own. Engines can't tell: one that was exported from wrong weights
agrees with them.

Shapes: T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hlap_export.checkpoint import read_config
from hlap_export.checkpoint.layout import read_layout
from hlap_export.plan.pruning_plan import AttentionPlan, Keep, KeepHeads, PruningPlan, Skip, ValueOnly, load_plan
from hlap_export.verify.layer_errors import Floats, error_ratio
from hlap_export.verify.report import FOLDS, Check, Folds, PartError
from hlap_export.verify.tolerances import TOLERANCES

if TYPE_CHECKING:
    import torch

PLAN_FILE = "plan.json"
NUM_TOKENS = 48
"""Of one row: each layer's weights meet all of them."""

Ids = NDArray[np.int64]


def check_folds(pruned: Path, dense: Path, ids: Ids, *, max_memory: int | None = None) -> Folds:
    """Compare every layer of a pruned checkpoint with the dense one under the plan.

    Layers that were fitted have no dense counterpart and are left out; kept ones must be the same.

    Args:
        pruned: the checkpoint, with its plan.
        dense: what it was made from.
        ids: tokens of a text; some at the start are enough.
        max_memory: most bytes of RAM for the whole process.

    Raises:
        PlanError: the plan can't be read.
        CheckpointError: one of the checkpoints can't be.
    """
    plan, row = load_plan(pruned / PLAN_FILE), ids[:NUM_TOKENS]
    states = _residual_stream(pruned, row, max_memory)
    errors = _errors(dense, plan, row, states, max_memory)
    dtype = str(read_config(pruned).get("dtype", "float32"))
    bound = TOLERANCES[dtype if dtype in TOLERANCES else "float32"].layer_error_ratio
    return Folds(dense=str(dense), dtype=dtype, bound=bound, layers=errors)


def fold_checks(folds: Folds | None) -> tuple[Check, ...]:
    """The check that the worst layer is within its bound; none where nothing was compared."""
    if folds is None or not folds.layers:
        return ()
    worst = max(layer.error_ratio for layer in folds.layers)
    passed = worst <= folds.bound
    return (Check(name=FOLDS, value=worst, bound=folds.bound, rule="at most", passed=passed, location=None),)


def _residual_stream(checkpoint: Path, row: Ids, max_memory: int | None) -> list[Floats]:
    """The residual stream [T, D] before layer 0 and after each layer."""
    import torch

    from hlap_export.checkpoint.decoder import Batch, open_decoder

    decoder = open_decoder(checkpoint, batch=Batch(windows=1, length=row.size), max_memory=max_memory)
    with torch.inference_mode():
        h_NTD = decoder.embed(torch.tensor(row)[None])
        states = [h_NTD[0].cpu().numpy()]
        for index in range(decoder.num_layers):
            with decoder.layer(index) as layer:
                h_NTD = layer(h_NTD)
            states.append(h_NTD[0].cpu().numpy())
    return states


def _errors(
    dense: Path, plan: PruningPlan, row: Ids, states: list[Floats], max_memory: int | None
) -> tuple[PartError, ...]:
    import torch

    from hlap_export.checkpoint.decoder import Batch, open_decoder

    decoder = open_decoder(dense, batch=Batch(windows=1, length=row.size), max_memory=max_memory)
    has_post_norms, found = read_layout(dense).family.has_post_norms, list[PartError]()
    for index, attention in enumerate(plan.attention):
        if index in plan.mlp or not isinstance(attention, Keep | KeepHeads | ValueOnly | Skip):
            continue
        with (
            torch.inference_mode(),
            decoder.layer(index) as layer,
            _unfolded(layer.module, attention, plan, has_post_norms=has_post_norms),
        ):
            expected = layer(torch.tensor(states[index])[None])[0].cpu().numpy()
        found.append(PartError(name=f"layer {index}", error_ratio=error_ratio(states[index + 1], expected)))
    return tuple(found)


@contextmanager
def _unfolded(layer: Any, attention: AttentionPlan, plan: PruningPlan, *, has_post_norms: bool) -> Generator[None]:
    """The dense layer doing what the plan says."""
    with ExitStack() as hooks:
        if isinstance(attention, ValueOnly | Skip):
            alpha = attention.alpha if isinstance(attention, ValueOnly) else 0.0
            scaled = layer.post_attention_layernorm if has_post_norms else layer.self_attn.o_proj

            def scale(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
                return alpha * output

            see_itself = layer.self_attn.register_forward_pre_hook(_see_itself_alone, with_kwargs=True)
            hooks.callback(see_itself.remove)
            hooks.callback(scaled.register_forward_hook(scale).remove)
        elif isinstance(attention, KeepHeads):
            kept = np.repeat(np.isin(np.arange(plan.model.num_heads), attention.query_heads), plan.model.head_dim)

            def drop(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
                return (inputs[0] * inputs[0].new_tensor(kept),)

            hooks.callback(layer.self_attn.o_proj.register_forward_pre_hook(drop).remove)
        yield


def _see_itself_alone(module: Any, arguments: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    import torch

    h_NTD = keywords["hidden_states"]
    length = h_NTD.shape[1]
    mask = torch.full((length, length), torch.finfo(h_NTD.dtype).min, device=h_NTD.device)
    mask = mask.fill_diagonal_(0)[None, None].expand(h_NTD.shape[0], 1, length, length)
    return arguments, keywords | {"attention_mask": mask}
