"""What a step must compute and move, against PyTorch's own counter of FLOPs and the tensors of real checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DynamicCache

from hlap_export.bench.report import Phase
from hlap_export.bench.work import Point, step_work
from hlap_export.checkpoint import ModelLayout, read_layout
from hlap_export.prune import prune
from tests.plans import tiny_plan
from tests.tiny import save_tiny

LENGTH = 24
DECODE = Point(phase="decode", num_tokens=LENGTH)
PREFILL = Point(phase="prefill", num_tokens=LENGTH)


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
    work = step_work(layout, Point(phase=phase, num_tokens=LENGTH), dtype="float32", all_logits=True)
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
    work = step_work(layout, PREFILL, dtype="float32")
    assert work.flops == counter.get_total_flops() - forbidden_flops(layout) - saved


def test_a_decode_step_has_but_one_token_to_give_logits_of(dense: Path) -> None:
    layout = read_layout(dense)
    last, every = (step_work(layout, DECODE, dtype="float32", all_logits=asked) for asked in (False, True))
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
    work = step_work(read_layout(checkpoint), DECODE, dtype="float32")
    assert work.bytes == matrices + one_token * (LENGTH + 1) + one_token


def test_a_batch_multiplies_the_arithmetic_and_the_cache_but_reads_the_weights_once(dense: Path) -> None:
    layout = read_layout(dense)
    one, four = (step_work(layout, replace(DECODE, batch=batch), dtype="float32") for batch in (1, 4))
    assert four.flops == 4 * one.flops
    matrices = sum(parameter.nbytes for parameter in loaded(dense).parameters() if parameter.ndim == 2)
    assert four.bytes - matrices == 4 * (one.bytes - matrices)


def test_half_the_precision_is_half_the_bytes_but_quantised_weights_leave_the_cache_in_float32(dense: Path) -> None:
    layout = read_layout(dense)
    whole, half, int8 = (step_work(layout, DECODE, dtype=dtype) for dtype in ("float32", "float16", "int8"))
    assert half.bytes * 2 == whole.bytes
    matrices = sum(parameter.numel() for parameter in loaded(dense).parameters() if parameter.ndim == 2)
    assert int8.bytes == int(matrices * 1.15625) + whole.bytes - 4 * matrices
    assert half.flops == whole.flops == int8.flops


def brute_force_pairs(new: int, past: int, window: int) -> int:
    return sum(1 for query in range(past, past + new) for key in range(query + 1) if query - key < window)


@pytest.mark.parametrize("window", [1, 5, 16, 24, 100])
@pytest.mark.parametrize("point", [PREFILL, DECODE])
def test_a_sliding_window_is_all_that_a_token_attends_to(tmp_path: Path, window: int, point: Point) -> None:
    layout = read_layout(save_tiny(tmp_path / "model", "mistral"))
    assert layout.sliding_window is not None
    found, without = (
        step_work(replace(layout, sliding_window=size), point, dtype="float32") for size in (window, None)
    )
    heads = sum(layer.num_heads for layer in layout.cached_layers)
    all_pairs, pairs = (brute_force_pairs(point.new_tokens, point.past_tokens, size) for size in (1000, window))
    assert without.flops - found.flops == 4 * heads * layout.head_dim * (all_pairs - pairs)
    if point.phase == "decode":
        kv_heads = sum(layer.num_kv_heads for layer in layout.cached_layers)
        unread = max(0, LENGTH + 1 - window)
        assert without.bytes - found.bytes == 2 * kv_heads * layout.head_dim * 4 * unread


def test_layers_that_are_global_ignore_the_window_of_those_that_slide(tmp_path: Path) -> None:
    layout = read_layout(save_tiny(tmp_path / "model", "gemma2"))
    assert layout.layer_types is not None
    sliding = [index for index, kind in enumerate(layout.layer_types) if kind == "sliding_attention"]
    assert 0 < len(sliding) < layout.num_layers
    found, without = (step_work(replace(layout, sliding_window=size), DECODE, dtype="float32") for size in (5, None))
    heads = sum(layer.num_heads for layer in layout.cached_layers if layer.index in sliding)
    assert without.flops - found.flops == 4 * heads * layout.head_dim * (LENGTH + 1 - 5)
