"""Checkpoints load as what they are; broken ones are named with the file, the finding and the cure."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hlap_export import reference_model
from hlap_export.checkpoint import check_weights, load_model, load_tokenizer, read_layout
from hlap_export.checkpoint.decoder import Batch, open_decoder
from hlap_export.checkpoint.tensors import open_tensors, read_shard
from hlap_export.errors import CheckpointError
from hlap_export.families import FAMILIES
from hlap_export.prune import prune
from tests.plans import tiny_plan
from tests.tiny import save_tiny, store_tied_pair_as_head, tiny_model

GENERATE = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "hlap_export":
            raise ImportError("hlap_export is not installed here")
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, dtype=torch.float32).eval()
ids = torch.arange(1, 9)[None]
with torch.no_grad():
    cached = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=True)
    plain = model.generate(ids, max_new_tokens=12, min_new_tokens=12, do_sample=False, use_cache=False)
    logits = model(input_ids=ids).logits
print(json.dumps({"cached": cached.tolist(), "plain": plain.tolist(), "logits": logits[0, -1].tolist()}))
"""


@pytest.mark.parametrize("model_type", FAMILIES)
def test_pruned_checkpoints_generate_where_only_torch_and_transformers_are(model_type: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", model_type)
    prune(dense, tiny_plan("mixed", read_layout(dense)), tmp_path / "pruned")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", GENERATE, str(tmp_path / "pruned")],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["cached"] == found["plain"]
    assert len(found["cached"][0]) == 20
    with torch.no_grad():
        own = load_model(tmp_path / "pruned", dtype=torch.float32)(input_ids=torch.arange(1, 9)[None]).logits[0, -1]
    assert found["logits"] == pytest.approx(own.tolist(), abs=1e-5)


def test_a_pruned_checkpoint_does_not_load_as_its_stock_family(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    prune(dense, tiny_plan("suffix", read_layout(dense)), tmp_path / "pruned")
    from transformers import AutoConfig

    with pytest.raises(ValueError, match="custom code"):
        AutoConfig.from_pretrained(tmp_path / "pruned", trust_remote_code=False)


def test_code_in_a_checkpoint_folder_is_never_run(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    prune(dense, tiny_plan("suffix", read_layout(dense)), tmp_path / "pruned")
    (tmp_path / "pruned" / "modeling_hlap.py").write_text("raise SystemExit('code from the folder was run')")
    load_model(tmp_path / "pruned", dtype=torch.float32)


def _edit_config(checkpoint: Path, **changes: Any) -> None:
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_model_with_its_own_modeling_code_is_refused(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    _edit_config(dense, auto_map={"AutoModelForCausalLM": "modeling_custom.CustomForCausalLM"})
    with pytest.raises(CheckpointError, match=r"modeling_custom\.CustomForCausalLM.*never executed"):
        read_layout(dense)


def test_a_quantised_model_is_refused_with_the_way_round(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    _edit_config(dense, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match=r"quantised checkpoint \(gptq\).*quantise afterwards"):
        read_layout(dense)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: expected a Hugging Face checkpoint.*no such folder"):
        read_layout(tmp_path / "nowhere")


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", ""])
def test_unsupported_families_are_told_which_are_supported(model_type: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(CheckpointError, match="llama, mistral, qwen2, gemma2, qwen3"):
        read_layout(tmp_path)


def test_a_config_that_is_not_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: expected JSON"):
        read_layout(tmp_path)


def test_a_config_with_a_wrong_type_is_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "qwen3")
    _edit_config(dense, hidden_size="wide")
    with pytest.raises(CheckpointError, match="hidden_size"):
        read_layout(dense)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    weights = dense / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: expected a complete safetensors file"):
        check_weights(dense)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 10**9), struct.pack("<Q", 4) + b"{]}}"])
def test_a_corrupt_header_is_named(content: bytes, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    (dense / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_tensors(dense)


@pytest.mark.parametrize("offsets", [[4, 12], [12, 20]], ids=["overlap", "gap"])
def test_tensors_that_overlap_or_leave_gaps_are_named(offsets: list[int], tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2]}
    header = json.dumps({"one": entry | {"data_offsets": [0, 8]}, "two": entry | {"data_offsets": offsets}}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(offsets[1]))
    with pytest.raises(CheckpointError, match=rf"two at byte {offsets[0]} of the data, not at 8"):
        read_shard(path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama", shard_size="60KB")
    shards = sorted(dense.glob("*.safetensors"))
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"{shards[1].name} missing"):
        open_tensors(dense)


def test_shards_that_contradict_their_index_are_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama", shard_size="60KB")
    index = dense / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = sorted(set(content["weight_map"].values()))[0]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"1 tensors elsewhere than it says, model\.norm\.weight"):
        open_tensors(dense)


def test_pickled_weights_are_never_loaded(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    (dense / "model.safetensors").rename(dense / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only pickles"):
        open_tensors(dense)


def test_weights_of_fewer_layers_than_the_config_says_are_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "mistral")
    _edit_config(dense, num_hidden_layers=5)
    with pytest.raises(CheckpointError, match=r"model\.layers\.4.*missing and \d+ more"):
        load_model(dense, dtype=torch.float32)


@pytest.mark.parametrize("stored", ["dense", "pruned"])
def test_a_tied_pair_is_found_under_the_heads_name_as_well(stored: str, tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "dense", "llama")
    store_tied_pair_as_head(model)
    if stored == "pruned":
        prune(model, tiny_plan("mixed", read_layout(model)), tmp_path / "pruned")
        prune(save_tiny(tmp_path / "other", "llama"), tiny_plan("mixed", read_layout(model)), tmp_path / "expected")
        model, expected = tmp_path / "pruned", load_model(tmp_path / "expected", dtype=torch.float32)
    else:
        expected = tiny_model("llama")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        logits = expected(input_ids=ids, use_cache=False).logits
        assert torch.equal(load_model(model, dtype=torch.float32)(input_ids=ids, use_cache=False).logits, logits)
        decoder = open_decoder(model, batch=Batch(windows=1, length=8))
        h_NTD = decoder.embed(ids)
        for index in range(decoder.num_layers):
            with decoder.layer(index) as layer:
                h_NTD = layer(h_NTD)
        assert torch.equal(decoder.head.logits(h_NTD), logits)


def test_a_tied_pair_under_neither_name_is_missing(tmp_path: Path) -> None:
    model = save_tiny(tmp_path / "model", "llama")
    weights = load_file(model / "model.safetensors")
    weights.pop("model.embed_tokens.weight")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight missing\."):
        check_weights(model)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama")
    with pytest.raises(CheckpointError, match="expected a tokenizer"):
        load_tokenizer(dense)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_layouts_equal_what_the_model_has(model_type: str, tmp_path: Path) -> None:
    layout = read_layout(save_tiny(tmp_path / "dense", model_type))
    attention = tiny_model(model_type).model.layers[1].self_attn
    assert attention.q_proj.weight.shape == (layout.num_heads * layout.head_dim, layout.hidden_size)
    assert attention.k_proj.weight.shape == (layout.num_kv_heads * layout.head_dim, layout.hidden_size)
    assert (attention.v_proj.bias is not None) == layout.biases.qkv
    assert (attention.o_proj.bias is not None) == layout.biases.output
    assert [layer.kind for layer in layout.layers] == ["full"] * layout.num_layers


CUSTOM_TOKENIZER = """
from transformers import PreTrainedTokenizerFast
class CustomTokenizer(PreTrainedTokenizerFast):
    brought_along = True
"""


def test_a_tokenizer_class_from_the_folder_runs_only_when_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    dense = save_tiny(tmp_path / "dense", "llama")
    shutil.copyfile(reference_model.path() / "tokenizer.json", dense / "tokenizer.json")
    (dense / "tokenization_custom.py").write_text(CUSTOM_TOKENIZER)
    named = {
        "tokenizer_class": "CustomTokenizer",
        "auto_map": {"AutoTokenizer": [None, "tokenization_custom.CustomTokenizer"]},
    }
    (dense / "tokenizer_config.json").write_text(json.dumps(named))
    assert hasattr(load_tokenizer(dense, trust_remote_code=True), "brought_along")
    with pytest.raises(CheckpointError, match="custom code"):
        load_tokenizer(dense)
