"""What a step must compute and move, against PyTorch's own counter of FLOPs and the tensors of real checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.ort.artefacts import top_quarter_plan
from benchmarks.ort.limits import limit, step_work
from hlap_export.checkpoint import read_layout
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


@pytest.mark.parametrize("plan", ["dense", "suffix", "mixed"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_flops_are_those_that_pytorch_counts_but_for_pairs_that_the_mask_forbids(
    dense: Path, plan: str, phase: str
) -> None:
    checkpoint = pruned(dense, plan)
    model, layout = loaded(checkpoint), read_layout(checkpoint)
    cache = DynamicCache()
    ids = torch.zeros(1, LENGTH, dtype=torch.int64)
    with torch.inference_mode():
        if phase == "decode":
            model(ids, past_key_values=cache)
            ids = ids[:, :1]
        with FlopCounterMode(display=False) as counter:
            model(ids, past_key_values=cache, logits_to_keep=1)
    work = step_work(layout, phase, LENGTH, dtype="float32")  # type: ignore[arg-type]
    forbidden = LENGTH * (LENGTH - 1) // 2 if phase == "prefill" else 0
    heads = sum(layer.num_heads for layer in layout.cached_layers)
    assert counter.get_total_flops() == work.flops + 4 * heads * layout.head_dim * forbidden


def test_all_logits_cost_a_head_for_every_token(dense: Path) -> None:
    layout = read_layout(dense)
    last, every = (step_work(layout, "prefill", LENGTH, dtype="float32", all_logits=asked) for asked in (False, True))
    assert every.flops - last.flops == 2 * (LENGTH - 1) * layout.hidden_size * layout.vocab_size
    assert every.bytes == last.bytes


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
    for phase, bound in (("prefill", "flops_ratio"), ("decode", "bytes_ratio")):
        found = limit(smaller, layout, phase, LENGTH, dtype="float32")  # type: ignore[arg-type]
        assert found.flops_ratio != found.bytes_ratio
        assert found.ratio == getattr(found, bound) < 1


def test_the_top_quarter_loses_its_attention_and_no_other_layer(dense: Path) -> None:
    attention = top_quarter_plan(dense).attention
    assert [isinstance(layer, ValueOnly | Skip) for layer in attention] == [False, False, False, True]
    assert isinstance(attention[-1], ValueOnly)
