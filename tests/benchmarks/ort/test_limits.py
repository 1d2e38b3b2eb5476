"""What a step must compute and move, against PyTorch's own counter of FLOPs and the tensors of real checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.ort.artefacts import top_quarter_plan
from benchmarks.ort.limits import Phase, limit, step_work
from hlap_export.checkpoint import ModelLayout, read_layout
from hlap_export.plan.pruning_plan import Skip, ValueOnly
from hlap_export.prune import prune
from tests.plans import tiny_plan
from tests.tiny import save_tiny

LENGTH = 24


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "model", "llama")


def pruned(dense: Path, plan: str) -> Path:
    out = dense.parent / plan
    prune(dense, tiny_plan(plan, read_layout(dense)), out)
    return out


def loaded(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=True, attn_implementation="eager").eval()


def counted(checkpoint: Path, phase: str) -> FlopCounterMode:
    """PyTorch's count of one step that gives all logits."""
    model, cache = loaded(checkpoint), DynamicCache()
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)
    with torch.inference_mode():
        if phase == "decode":
            model(ids, past_key_values=cache)
            ids = ids[:, :1]
        with FlopCounterMode(display=False) as counter:
            model(ids, past_key_values=cache)
    return counter


def forbidden_flops(layout: ModelLayout) -> int:
    """What eager attention computes in a prefill only to mask it: of each token with those after it."""
    return 4 * layout.head_dim * sum(layer.num_heads for layer in layout.cached_layers) * LENGTH * (LENGTH - 1) // 2


@pytest.mark.parametrize("plan", ["dense", "suffix", "mixed"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_flops_are_those_that_pytorch_counts_but_for_pairs_that_the_mask_forbids(
    dense: Path, plan: str, phase: Phase
) -> None:
    checkpoint = pruned(dense, plan)
    layout = read_layout(checkpoint)
    work = step_work(layout, phase, LENGTH, dtype="float32", all_logits=True)
    forbidden = forbidden_flops(layout) if phase == "prefill" else 0
    assert counted(checkpoint, phase).get_total_flops() == work.flops + forbidden


@pytest.mark.parametrize(("plan", "last_attention"), [("dense", 3), ("suffix", 1), ("holes", 3), ("mixed", 2)])
def test_without_all_logits_only_the_last_token_goes_on_after_the_last_attention(
    dense: Path, plan: str, last_attention: int
) -> None:
    checkpoint = pruned(dense, plan)
    layout = read_layout(checkpoint)
    counter = counted(checkpoint, "prefill")
    of_module = {name: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    root = type(loaded(checkpoint)).__name__
    after = [f"{root}.model.layers.{last_attention}.{name}" for name in ("self_attn.o_proj", "mlp")]
    after += [f"{root}.model.layers.{index}" for index in range(last_attention + 1, layout.num_layers)]
    saved = sum(of_module[name] for name in [*after, f"{root}.lm_head"]) * (LENGTH - 1) // LENGTH
    work = step_work(layout, "prefill", LENGTH, dtype="float32")
    assert work.flops == counter.get_total_flops() - forbidden_flops(layout) - saved


def test_a_decode_step_has_but_one_token_to_give_logits_of(dense: Path) -> None:
    layout = read_layout(dense)
    last, every = (step_work(layout, "decode", LENGTH, dtype="float32", all_logits=asked) for asked in (False, True))
    assert last == every


@pytest.mark.parametrize("plan", ["dense", "mixed"])
def test_bytes_are_the_matrices_once_and_the_cache_read_and_appended_to(dense: Path, plan: str) -> None:
    checkpoint = pruned(dense, plan)
    model = loaded(checkpoint)
    matrices = sum(parameter.nbytes for parameter in model.parameters() if parameter.ndim == 2)
    cache = DynamicCache()
    with torch.inference_mode():
        model(torch.zeros(1, LENGTH + 1, dtype=torch.int64), past_key_values=cache)
    one_token = sum(layer.keys[:, :, :1].nbytes * 2 for layer in cache.layers if layer.keys is not None)
    work = step_work(read_layout(checkpoint), "decode", LENGTH, dtype="float32")
    assert work.bytes == matrices + one_token * (LENGTH + 1) + one_token


def test_the_limit_is_the_ratio_that_the_phase_is_bound_by(dense: Path) -> None:
    layout, smaller = read_layout(dense), read_layout(pruned(dense, "suffix"))
    bounds: dict[Phase, str] = {"prefill": "flops_ratio", "decode": "bytes_ratio"}
    for phase, bound in bounds.items():
        found = limit(smaller, layout, phase, LENGTH, dtype="float32")
        assert found.flops_ratio != found.bytes_ratio
        assert found.ratio == getattr(found, bound) < 1


def test_the_top_quarter_loses_its_attention_and_no_other_layer(dense: Path) -> None:
    attention = top_quarter_plan(dense).attention
    assert [isinstance(layer, ValueOnly | Skip) for layer in attention] == [False, False, False, True]
    assert isinstance(attention[-1], ValueOnly)
