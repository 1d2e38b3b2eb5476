"""Layers that are loaded one at a time compute what the whole model does, to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from hlap_export.checkpoint import decoder as decoder_module
from hlap_export.checkpoint import load_model, read_layout
from hlap_export.checkpoint.decoder import Batch, Decoder, open_decoder
from hlap_export.checkpoint.placement import Placement, place
from hlap_export.errors import BudgetError
from hlap_export.families import FAMILIES
from hlap_export.prune import prune
from tests.memory import leave_memory
from tests.plans import tiny_plan
from tests.tiny import NUM_LAYERS, VOCAB_SIZE, save_tiny, tiny_model

# Longer than the tiny models' sliding window of 7.
IDS = torch.randint(0, VOCAB_SIZE, (3, 25), generator=torch.Generator().manual_seed(1))
BATCH = Batch(windows=3, length=25)


@torch.inference_mode()
def logits(decoder: Decoder) -> torch.Tensor:
    h_NTD = decoder.embed(IDS)
    for index in range(decoder.num_layers):
        with decoder.layer(index) as layer:
            h_NTD = decoder.at_rest(layer(h_NTD))
    return decoder.head.logits(h_NTD)


@torch.inference_mode()
def whole_model_logits(checkpoint: Path) -> torch.Tensor:
    return load_model(checkpoint, dtype=torch.float32)(input_ids=IDS, use_cache=False).logits


def least_memory(model_type: str) -> int:
    """Room for one layer and the residual stream of a batch, where nothing can be resident."""
    layer = tiny_model(model_type).model.layers[0]
    return 4 * sum(parameter.numel() for parameter in layer.parameters()) + BATCH.state_bytes(48)


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("plan", ["dense", "mixed"])
def test_any_share_of_streamed_layers_gives_the_whole_models_logits(
    model_type: str, plan: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_tiny(tmp_path / "dense", model_type, shard_size="60KB")
    if plan != "dense":
        prune(checkpoint, tiny_plan(plan, read_layout(checkpoint)), tmp_path / "pruned")
        checkpoint = tmp_path / "pruned"
    expected = whole_model_logits(checkpoint)
    streamed: list[int] = []
    weights = sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))
    for memory in (2**30, weights * 3 // 4, least_memory(model_type)):
        leave_memory(monkeypatch, {"cpu": memory})
        decoder = open_decoder(checkpoint, batch=BATCH)
        streamed.append(decoder.placement.num_streamed_layers)
        assert torch.equal(logits(decoder), expected)
    assert streamed[0] == 0 < streamed[1] < streamed[2] == NUM_LAYERS


def test_a_second_device_holds_layers_and_computes_what_lies_in_ram_or_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no GPU here: "cpu:0" stands for one, and is to torch a device of another name."""
    checkpoint = save_tiny(tmp_path / "dense", "gemma2")
    split = Placement(layers=("disk", "cpu", "cpu:0", "cpu:0"), head="cpu", main="cpu:0", states_bytes=1)
    monkeypatch.setattr(decoder_module, "place", lambda *_, **__: split)
    decoder = open_decoder(checkpoint, batch=BATCH)
    resident = [index for index in range(NUM_LAYERS) if not _is_empty(decoder, index)]
    assert resident == [2, 3]
    assert torch.equal(logits(decoder), whole_model_logits(checkpoint))


def _is_empty(decoder: Decoder, index: int) -> bool:
    with decoder.layer(index) as layer:
        module = layer.module
        assert layer.device == "cpu:0"
        assert not any(parameter.is_meta for parameter in module.parameters())
    return all(parameter.is_meta for parameter in module.parameters())


def test_a_streamed_layer_is_dropped_even_when_computing_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_tiny(tmp_path / "dense", "llama")
    leave_memory(monkeypatch, {"cpu": least_memory("llama")})
    decoder = open_decoder(checkpoint, batch=BATCH)
    seen: list[nn.Module] = []

    def fail_in_layer() -> None:
        with decoder.layer(0) as layer:
            seen.append(layer.module)
            raise KeyError

    with pytest.raises(KeyError):
        fail_in_layer()
    assert all(parameter.is_meta for parameter in seen[0].parameters())


@pytest.mark.parametrize("model_type", FAMILIES)
def test_pruned_checkpoints_open_within_a_limit_like_dense_ones(model_type: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", model_type)
    prune(dense, tiny_plan("mixed", read_layout(dense)), tmp_path / "pruned")
    decoder = open_decoder(tmp_path / "pruned", batch=BATCH, max_memory=2**40)
    assert decoder.placement.is_resident_whole


def test_the_layers_that_are_used_most_stay_the_last_ones() -> None:
    layers = nn.ModuleList(nn.Linear(16, 16, bias=False, device="meta") for _ in range(6))
    head = nn.Linear(16, 16, bias=False, device="meta")
    # Room for four, one of which is kept free for the layer that is loaded; a quarter is set aside for states.
    placement = place(layers, head, {"cpu": 4 * 1024 * 4 // 3 + 16}, working_bytes=8)
    assert placement.layers == ("disk", "disk", "disk", "cpu", "cpu", "cpu")
    assert placement.head == "disk"
    assert placement.states_bytes == 4 * 1024 // 3 + 4
    assert not placement.is_resident_whole


def test_what_cannot_hold_one_layer_is_refused_with_the_sum() -> None:
    layers = nn.ModuleList([nn.Linear(1024, 1024, bias=False, device="meta")])
    with pytest.raises(BudgetError, match=r"4 MiB for the largest layer.*1 MiB to compute"):
        place(layers, layers[0], {"cpu": 5 * 2**20 - 1}, working_bytes=2**20)


def test_a_limit_below_what_the_process_already_holds_is_refused(tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path / "dense", "llama")
    with pytest.raises(BudgetError, match="0 MiB left to use"):
        open_decoder(checkpoint, batch=BATCH, max_memory=2**20)


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_losses_are_torchs_cross_entropy_of_the_whole_logits(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks that divide neither the vocabulary nor the tokens.
    monkeypatch.setattr("hlap_export.checkpoint.head.VOCABULARY_AT_ONCE", 37)
    monkeypatch.setattr("hlap_export.checkpoint.head.TOKENS_AT_ONCE", 11)
    checkpoint = save_tiny(tmp_path / "dense", model_type)
    model = load_model(checkpoint, dtype=torch.float32)
    decoder = open_decoder(checkpoint, batch=BATCH)
    streams = [torch.randn(3, 25, 48), 30 * torch.randn(2, 25, 48)]
    targets = [IDS, IDS[:2]]
    with torch.inference_mode():
        found = decoder.head.losses_nats(streams, targets)
        for loss, h_NTD, target in zip(found, streams, targets, strict=True):
            full = model.lm_head(model.model.norm(h_NTD))
            if model_type == "gemma2":
                full = 3.0 * torch.tanh(full / 3.0)
            expected = torch.nn.functional.cross_entropy(full.flatten(0, 1), target.flatten(), reduction="sum")
            assert loss == pytest.approx(float(expected), rel=1e-6)
