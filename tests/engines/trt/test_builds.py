"""TensorRT-RTX's own compiler, on any machine: what it builds from every family's graphs, and what it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from hlap_export.artifacts import Manifest, is_intact, read_manifest
from hlap_export.engines import build, open_session
from hlap_export.engines.trt import TensorRTOptions, library
from hlap_export.errors import ArtefactError, BackendMissing
from hlap_export.families import FAMILIES
from hlap_export.machine import count_nvidia_gpus
from hlap_export.report.builds import build_rows, build_table
from tests.export.exports import TinyExports
from tests.tiny_engines import altered

CAPACITY = 32
SMALL = TensorRTOptions(capacity=CAPACITY, max_batch=2, max_prompt=16, max_logits=8)
# "partial_heads" has layers of two, four and a single query head, and of one KV head.
PLANS = ("dense", "suffix", "holes", "partial_heads")
CASES = [
    *((family, plan, "float16") for family in FAMILIES for plan in PLANS),
    ("llama", "mixed", "bfloat16"),
    ("gemma2", "mixed", "float32"),
]
KERNELS = {"prompt_kernel": "_gemm_mha_v2", "single_token_kernel": "_gemv_mha_v1"}
TYPES = {"float16": "half", "bfloat16": "bfloat16", "float32": "float"}


def built(exports: TinyExports, out: Path, case: tuple[str, str, str], options: TensorRTOptions = SMALL) -> Manifest:
    return build(exports.get(*case, "trt").folder, out, engine="tensorrt-rtx", options=options)


def attention_kernels(layers: list[dict[str, Any]]) -> dict[int, str]:
    """The kernel that computes each decoder layer's attention, by the names of the nodes in it."""
    return {
        int(layer[1]): kernel["name"].split("_myl")[0]
        for kernel in layers
        for node in kernel["nodes"]
        if "_mha" in kernel["name"] and (layer := re.match(r"model\.layers\.(\d+)\.self_attn", node))
    }


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_prefill_and_decode_are_built_with_the_bindings_and_fused_layers_that_the_plan_leaves(
    case: tuple[str, str, str], tiny_exports: TinyExports, tmp_path: Path
) -> None:
    """The compiler itself lists both: what is compared isn't what was asked for, but what came out."""
    exported = read_manifest(tiny_exports.get(*case, "trt").folder).facts
    facts = built(tiny_exports, tmp_path / "engine", case).facts
    layout, dtype = exported["layout"], TYPES[case[2]]
    live = {index: layer["num_kv_heads"] for index, layer in enumerate(layout["layers"]) if layer["kind"] == "full"}
    expected = {
        f"{kind} {prefix}.{index}.{part}: {dtype} [-1,{heads},{CAPACITY},{layout['head_dim']}]"
        for index, heads in live.items()
        for part in ("key", "value")
        for kind, prefix in (("input", "past_key_values"), ("output", "present"))
    }
    bindings = facts["plans"]["model.engine"]["bindings"]
    assert {binding for binding in bindings if re.search(r"past_key_values|present", binding)} == expected
    assert len(bindings) == len(expected) + 4  # ids, write indices, logits indices; logits
    inspection = json.loads((tmp_path / "engine" / "inspection.json").read_text())
    for phase, layers in inspection.items():
        promised = {form["layer"]: KERNELS[form[phase]] for form in facts["attention"] if form[phase] in KERNELS}
        assert promised.items() <= attention_kernels(layers).items()
        assert set(promised) <= set(facts["phases"][phase]["fused_attention_layers"])


def test_one_layer_with_few_heads_changes_the_kernel_of_all_and_the_engine_says_so(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    """Its export can't: whether layers 0 and 2 have a kernel for one token is decided by layer 1's three heads."""
    attention = built(tiny_exports, tmp_path / "engine", ("llama", "partial_heads", "float16")).facts["attention"]
    assert [form["decode"] for form in attention] == ["prompt_kernel"] * 3 + ["decomposed"]
    reason = r"takes 2 tokens for all layers because of layer 1, 3 query heads: .*needs 4"
    assert all(re.search(reason, attention[layer]["reason"]) for layer in (0, 2))
    alone = built(tiny_exports, tmp_path / "dense", ("llama", "dense", "float16")).facts["attention"]
    assert [(form["decode"], form["reason"]) for form in alone] == [("single_token_kernel", "")] * 4


def test_a_compiler_that_lists_no_layers_is_not_said_to_have_none(
    tiny_exports: TinyExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = ("llama", "mixed", "bfloat16")
    listed = built(tiny_exports, tmp_path / "listed", case).facts
    monkeypatch.setattr(library, "LAYERS", "other words")
    facts = built(tiny_exports, tmp_path / "engine", case).facts
    assert facts["phases"]["decode"] == {"num_kernels": None, "fused_attention_layers": None}
    assert json.loads((tmp_path / "engine" / "inspection.json").read_text()) == {"prefill": None, "decode": None}
    assert facts["warnings"] == ["the compiler listed no layers: which kernels run isn't known"]
    # The network, which is asked in its place, has the same bindings.
    names = [sorted(known["plans"]["model.engine"]["bindings"]) for known in (listed, facts)]
    assert names[0] == names[1]
    (row,) = build_rows({"pruned": tmp_path / "engine"})
    assert (row.num_kv_bindings, row.phases) == (4, ())
    assert "kernels" not in str(build_table((row,)))


def test_two_engines_hold_what_one_with_two_profiles_does(tiny_exports: TinyExports, tmp_path: Path) -> None:
    case = ("llama", "mixed", "float16")
    together = built(tiny_exports, tmp_path / "one", case)
    apart = built(tiny_exports, tmp_path / "two", case, replace(SMALL, two_engines=True))
    assert set(together.facts["plans"]) == {"model.engine"}
    assert set(apart.facts["plans"]) == {"prefill.engine", "decode.engine"}
    for phase in ("prefill", "decode"):
        assert apart.facts["phases"][phase] == together.facts["phases"][phase]


def test_the_inspection_names_the_decoder_layers_that_each_kernel_computes(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    built(tiny_exports, tmp_path / "engine", ("llama", "mixed", "float16"))
    inspection = json.loads((tmp_path / "engine" / "inspection.json").read_text())
    for layers in inspection.values():
        nodes = " ".join(node for layer in layers for node in layer["nodes"])
        # Layer 3 lost its attention, layer 1 all but its values.
        assert "model.layers.3.mlp.down_proj/MatMul" in nodes
        assert "model.layers.3.self_attn" not in nodes
        assert "model.layers.1.self_attn.o_proj/MatMul" in nodes
        assert "model.layers.1.self_attn.q_proj" not in nodes
    assert {layer["profile"] for layer in inspection["decode"]} == {1}
    assert {layer["profile"] for layer in inspection["prefill"]} == {0}


def test_the_engine_folder_says_who_compiled_it_and_is_self_contained(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    manifest = built(tiny_exports, tmp_path / "engine", ("llama", "mixed", "float16"))
    assert is_intact(tmp_path / "engine", manifest)
    assert {"model.engine", "inspection.json", "config.json"} <= set(manifest.files)
    assert re.fullmatch(r"TensorRT-RTX 1\.\d+\.\d+\.\d+", manifest.facts["compiler"])
    # Layers 0 and 2 attend, with 2 and 1 KV heads of 16: keys and values, 2 bytes each.
    assert manifest.facts["kv_bytes_per_token"] == 2 * (2 + 1) * 16 * 2
    assert manifest.facts["kv_bytes_per_row"] == CAPACITY * manifest.facts["kv_bytes_per_token"]
    assert manifest.parameters["capacity"] == CAPACITY


def test_an_identical_request_is_answered_at_once_and_another_says_what_changed(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    case, out, told = ("llama", "mixed", "float16"), tmp_path / "engine", list[str]()
    export_dir = tiny_exports.get(*case, "trt").folder

    def again(options: TensorRTOptions) -> Manifest:
        return build(export_dir, out, engine="tensorrt-rtx", options=options, tell=told.append)

    first = again(SMALL)
    written = (out / "model.engine").stat().st_mtime_ns
    assert again(SMALL) == first
    assert (out / "model.engine").stat().st_mtime_ns == written
    assert again(replace(SMALL, capacity=64)).parameters["capacity"] == 64
    (out / "model.engine").write_bytes(b"broken")
    again(replace(SMALL, capacity=64))
    assert told == [
        f"{out}: reused, the same request made it",
        "rebuilt because: capacity 32 -> 64",
        "rebuilt because: its files were changed",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_a_failed_rebuild_leaves_the_earlier_engine_as_it_is(tiny_exports: TinyExports, tmp_path: Path) -> None:
    case, out = ("llama", "mixed", "float16"), tmp_path / "engine"
    first = built(tiny_exports, out, case)
    with pytest.raises(ArtefactError, match="compute_capabilities"):
        built(tiny_exports, out, case, replace(SMALL, compute_capabilities=("SM90",)))
    assert is_intact(out, first)
    assert [path.name for path in tmp_path.iterdir()] == ["engine"]


def test_an_engine_is_built_for_the_gpus_that_were_named(tiny_exports: TinyExports, tmp_path: Path) -> None:
    case = ("llama", "mixed", "float16")
    built(tiny_exports, tmp_path / "any", case)
    built(tiny_exports, tmp_path / "ada", case, replace(SMALL, compute_capabilities=("SM89",)))
    plans = [(tmp_path / name / "model.engine").read_bytes() for name in ("any", "ada")]
    assert plans[0] != plans[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute_capabilities": ("SM90",)}, r"among SM75, .*found SM90"),
        ({"compatibility": "ampere_plus"}, r"compute_capabilities says which GPUs"),
        ({"version_compatible": True}, r"run with the version that built them"),
        ({"capacity": 4096}, r"capacity: expected between 1 and 128, the positions that the model has, found 4096"),
        ({"max_prompt": 33}, r"max_prompt: expected between 1 and 32, the capacity, found 33"),
        ({"max_logits": 17}, r"max_logits: expected between 1 and 16, max_prompt, found 17"),
    ],
)
def test_what_cannot_be_built_is_refused_in_words_before_the_compiler_does(
    changes: dict[str, Any], message: str, tiny_exports: TinyExports, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match=message):
        built(tiny_exports, tmp_path / "out", ("llama", "mixed", "float16"), replace(SMALL, **changes))
    assert not (tmp_path / "out").exists()


def test_another_flavour_is_refused_with_the_right_one(tiny_exports: TinyExports, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"flavour trt.*found flavour portable.*--flavour trt"):
        build(tiny_exports.get("llama").folder, tmp_path / "out", engine="tensorrt-rtx")


def test_a_graph_that_the_parser_refuses_is_told_with_the_parsers_reason_and_the_layer(
    tiny_exports: TinyExports, tmp_path: Path
) -> None:
    def circular(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        node = next(node for node in model.graph.node if node.op_type == "TensorScatter" and ".2." in node.name)
        node.attribute.append(onnx.helper.make_attribute("mode", "circular"))
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    broken = altered(tiny_exports.get("llama", "mixed", "float16", "trt").folder, tmp_path / "export", circular)
    with pytest.raises(ArtefactError, match=r"layer 2: expected a graph that TensorRT-RTX .* parses, found .*ircular"):
        build(broken, tmp_path / "out", engine="tensorrt-rtx", options=SMALL)
    assert not (tmp_path / "out").exists()


def test_without_a_gpu_opening_an_engine_says_why_in_one_sentence(tiny_exports: TinyExports, tmp_path: Path) -> None:
    if count_nvidia_gpus()[0]:
        pytest.skip("this machine has a GPU")
    built(tiny_exports, tmp_path / "engine", ("llama", "mixed", "float16"))
    with pytest.raises(BackendMissing, match=r"can run engines of tensorrt-rtx, found no NVIDIA driver") as error:
        open_session(tmp_path / "engine")
    assert error.value.exit_code == 3
