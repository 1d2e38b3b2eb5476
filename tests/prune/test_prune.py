"""A pruned checkpoint computes what the dense model computes under the plan's masks and scales."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlap_export.artifacts import is_intact, read_manifest
from hlap_export.checkpoint import load_model, read_layout
from hlap_export.errors import CheckpointError, OutputError, PlanError
from hlap_export.families import FAMILIES
from hlap_export.plan.pruning_plan import PruningPlan, Skip, ValueOnly, plan_of_alphas
from hlap_export.prune import prune
from tests.masked_dense import masked_logits
from tests.plans import ATTENTION, FITTED, save_tiny_fitted, tiny_plan
from tests.tiny import VOCAB_SIZE, save_tiny

# Design §5: pruned torch in float32 against the masked dense model.
RELATIVE_LOGIT_ERROR = 1e-4
# bfloat16 has 8 bits of mantissa: folded weights are rounded once more than the dense ones (half an ulp is 2**-9),
# and the error of a few layers adds up.
BFLOAT16_LOGIT_ERROR = 3e-2

PLANS = [name for name in [*ATTENTION, *FITTED] if name != "dense"]
IDS = torch.randint(1, VOCAB_SIZE, (2, 21), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=FAMILIES)
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense checkpoint of each family in several shards."""
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param, shard_size="60KB")


def pruned(dense: Path, plan_name: str, out: Path) -> Path:
    prune(dense, tiny_plan(plan_name, read_layout(dense)), out)
    return out


def pruned_as(dense: Path, plan_name: str, out: Path) -> tuple[PruningPlan, dict[str, torch.Tensor]]:
    """Prune by a plan whose fitted weights, if it has any, are made up: the plan, and these weights."""
    layout, side_file = read_layout(dense), out.with_suffix(".safetensors")
    plan = tiny_plan(plan_name, layout)
    if plan.fits:
        plan = save_tiny_fitted(plan, layout, side_file)
    prune(dense, plan, out, fitted=side_file)
    return plan, load_file(side_file) if plan.fits else {}


@pytest.mark.parametrize("plan_name", PLANS)
def test_pruned_logits_equal_the_masked_dense_models(dense: Path, plan_name: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "out"
    plan, fitted = pruned_as(dense, plan_name, checkpoint)
    reference = masked_logits(load_model(dense, dtype=torch.float32, attention="eager"), plan, IDS, fitted=fitted)
    with torch.no_grad():
        logits = load_model(checkpoint, dtype=torch.float32)(input_ids=IDS).logits
    assert (logits - reference).abs().max() <= RELATIVE_LOGIT_ERROR * reference.abs().max()


@pytest.mark.parametrize("plan_name", ["mixed", "linear", "blocks"])
def test_left_padding_and_cached_decoding_equal_the_masked_dense_model(
    dense: Path, plan_name: str, tmp_path: Path
) -> None:
    plan, fitted = pruned_as(dense, plan_name, tmp_path / "out")
    model = load_model(tmp_path / "out", dtype=torch.float32)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    reference = masked_logits(
        load_model(dense, dtype=torch.float32, attention="eager"),
        plan,
        IDS,
        fitted=fitted,
        attention_mask=mask,
        position_ids=positions,
    )
    with torch.no_grad():
        prompt = 12
        step = model(
            input_ids=IDS[:, :prompt],
            attention_mask=mask[:, :prompt],
            position_ids=positions[:, :prompt],
            use_cache=True,
        )
        steps = [step.logits]
        for at in range(prompt, IDS.shape[1]):
            step = model(
                input_ids=IDS[:, at : at + 1],
                attention_mask=mask[:, : at + 1],
                position_ids=positions[:, at : at + 1],
                past_key_values=step.past_key_values,
                use_cache=True,
            )
            steps.append(step.logits)
    logits = torch.cat(steps, dim=1)
    error = (logits - reference)[mask.bool()].abs().max()
    assert error <= RELATIVE_LOGIT_ERROR * reference.abs().max()


def test_bfloat16_checkpoints_keep_their_dtype_and_stay_close(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen2", dtype=torch.bfloat16)
    checkpoint = pruned(dense, "suffix", tmp_path / "out")
    assert {tensor.dtype for tensor in _tensors(checkpoint).values()} == {torch.bfloat16}
    plan = tiny_plan("suffix", read_layout(dense))
    reference = masked_logits(load_model(dense, dtype=torch.float32, attention="eager"), plan, IDS)
    with torch.no_grad():
        logits = load_model(checkpoint, dtype=torch.float32)(input_ids=IDS).logits
    error = (logits - reference).abs().max() / reference.abs().max()
    assert 0 < error <= BFLOAT16_LOGIT_ERROR


def test_untouched_tensors_are_copied_byte_for_byte_and_attention_leaves_nothing(dense: Path, tmp_path: Path) -> None:
    checkpoint = pruned(dense, "suffix", tmp_path / "out")
    before, after = _tensors(dense), _tensors(checkpoint)
    changed = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    assert changed
    assert all(".layers.3." in name for name in changed)
    assert not any(name.startswith("model.layers.2.self_attn") for name in after)
    assert "model.layers.2.input_layernorm.weight" not in after
    assert {name for name in after if name.startswith("model.layers.3.self_attn")} == {
        "model.layers.3.self_attn.v_proj.weight",
        "model.layers.3.self_attn.o_proj.weight",
    } | ({"model.layers.3.self_attn.o_proj.bias"} if dense.name.startswith("qwen2") else set())
    layout = read_layout(dense)
    assert after["model.layers.3.self_attn.o_proj.weight"].shape == (48, layout.num_kv_heads * layout.head_dim)


def test_the_index_names_every_tensors_shard(dense: Path, tmp_path: Path) -> None:
    checkpoint = pruned(dense, "suffix", tmp_path / "out")
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())
    held = {}
    for shard in sorted(checkpoint.glob("*.safetensors")):
        held |= dict.fromkeys(load_file(shard), shard.name)
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in _tensors(checkpoint).values())


def test_the_card_names_each_changed_layer_and_no_other(tmp_path: Path) -> None:
    card = (pruned(save_tiny(tmp_path / "dense", "llama"), "mixed", tmp_path / "out") / "README.md").read_text()
    rows = [line for line in card.splitlines() if line.startswith("| ") and line[2].isdigit()]
    assert [row.split("|")[1].strip() for row in rows] == ["0", "1", "2", "3"]
    assert "2 of 6 query heads, 1 of 2 KV heads" in rows[2]
    assert "alpha 0.7" in rows[1]


def test_the_same_request_writes_the_same_bytes(dense: Path, tmp_path: Path) -> None:
    one, two = pruned(dense, "mixed", tmp_path / "one"), pruned(dense, "mixed", tmp_path / "two")
    assert read_manifest(one).files == read_manifest(two).files
    assert is_intact(one, read_manifest(one))


def test_an_edited_weight_that_is_stored_as_integers_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    dense, name = save_tiny(tmp_path / "dense", "llama"), "model.layers.3.self_attn.o_proj.weight"
    weights = load_file(dense / "model.safetensors")
    save_file(weights | {name: weights[name].to(torch.float8_e4m3fn)}, dense / "model.safetensors")
    plan = plan_of_alphas(read_layout(dense), {3: 0.5}, method="one")
    with pytest.raises(CheckpointError, match=rf"{name}: expected floating-point weights.*found F8_E4M3\. Fix: "):
        prune(dense, plan, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    other = tiny_plan("suffix", read_layout(save_tiny(tmp_path / "other", "llama", hidden_size=96)))
    with pytest.raises(PlanError, match="hidden_size 48, found hidden_size 96"):
        prune(dense, other, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_removing_attention_from_layer_0_is_refused_with_the_reason(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    plan = tiny_plan("dense", read_layout(dense))
    for first in (ValueOnly(alpha=0.5), Skip()):
        broken = plan.model_copy(update={"attention": (first, *plan.attention[1:])})
        with pytest.raises(PlanError, match="length of the KV cache is read from the first layer"):
            prune(dense, broken, tmp_path / "out")


def test_an_occupied_output_folder_is_left_alone(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("data")
    with pytest.raises(OutputError, match="folder with files"):
        pruned(dense, "suffix", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious.txt"]


def test_config_and_weights_that_disagree_are_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    config = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config | {"intermediate_size": 72}))
    with pytest.raises(CheckpointError, match=r"mlp\.down_proj\.weight of shape \[48, 80\].*implies \[48, 72\]"):
        pruned(dense, "dense", tmp_path / "out")


def _tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for shard in checkpoint.glob("*.safetensors"):
        tensors |= load_file(shard)
    return tensors
