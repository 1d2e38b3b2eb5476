"""The export folder: its contract, its bytes, its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from safetensors import safe_open

from hlap_export.artifacts import folder_digest, is_intact, read_manifest
from hlap_export.checkpoint import read_layout
from hlap_export.errors import ExportError, OutputError
from hlap_export.export import DATA_FILE, export, io_contract, kv_bytes_per_token
from hlap_export.families import FAMILIES
from tests.export.exports import TinyExports
from tests.tiny import save_tiny

ONNX_TYPES = {"float32": "FLOAT", "float16": "FLOAT16", "bfloat16": "BFLOAT16", "int64": "INT64"}


def signature(values: list[ir.Value]) -> list[tuple[str, str, tuple[int | str | None, ...]]]:
    return [
        (str(value.name), str(value.dtype), tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape))
        for value in values
    ]


@pytest.mark.parametrize(
    ("family", "plan", "dtype"),
    [
        *((family, "partial_heads", "float32") for family in FAMILIES),
        ("llama", "mixed", "float32"),
        ("llama", "mixed", "float16"),
        ("gemma2", "mixed", "float16"),
        ("llama", "mixed", "bfloat16"),
    ],
)
def test_inputs_and_outputs_are_the_contracts(family: str, plan: str, dtype: str, tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get(family, plan, dtype)
    contract = io_contract(read_layout(exported.checkpoint), dtype)
    graph = ir.load(exported.model_file).graph
    for declared, specs in ((graph.inputs, contract.inputs), (graph.outputs, contract.outputs)):
        assert signature(list(declared)) == [(spec.name, ONNX_TYPES[spec.dtype], spec.shape) for spec in specs]


def test_only_layers_that_attend_have_kv_entries_and_with_their_own_head_counts(tiny_exports: TinyExports) -> None:
    # "mixed": one query head in each of two KV groups, value-only, two heads of one group, nothing.
    graph = ir.load(tiny_exports.get("llama", "mixed").model_file).graph
    shapes = {value.name: tuple(value.shape) for value in graph.inputs if value.name.endswith(".key")}
    assert {name: (shape[1], shape[3]) for name, shape in shapes.items()} == {
        "past_key_values.0.key": (2, 16),
        "past_key_values.2.key": (1, 16),
    }


def test_a_layer_without_attention_leaves_nothing_in_the_graph(tiny_exports: TinyExports) -> None:
    graph = ir.load(tiny_exports.get("llama", "mixed").model_file).graph
    names = [*graph.initializers, *(node.name or "" for node in graph)]
    assert [name for name in names if name.startswith("model.layers.3.") and "mlp" not in name] == [
        "model.layers.3.post_attention_layernorm.weight",
        *(name for name in names if name.startswith("model.layers.3.post_attention_layernorm/")),
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_is_valid_plain_onnx_with_inferable_shapes(
    family: str, tiny_exports: TinyExports, tmp_path: Path
) -> None:
    path, inferred = str(tiny_exports.get(family, "suffix").model_file), str(tmp_path / "inferred.onnx")
    onnx.checker.check_model(path, full_check=True)  # by path, the way that works above 2 GB
    onnx.shape_inference.infer_shapes_path(path, inferred, strict_mode=True, data_prop=True)
    model = onnx.load(inferred, load_external_data=False)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.functions
    assert model.ir_version == 8  # the one of opset 18's release: older runtimes refuse newer files


@pytest.mark.parametrize(("family", "num_masks"), [("llama", 1), ("mistral", 1), ("gemma2", 2)])
def test_a_mask_is_built_once_per_layer_kind_and_kv_is_never_repeated(
    family: str, num_masks: int, tiny_exports: TinyExports
) -> None:
    graph = ir.load(tiny_exports.get(family, "dense").model_file).graph
    operators = [node.op_type for node in graph]
    assert operators.count("Where") == num_masks
    assert not {"Expand", "Tile", "Identity", "CastLike", "IsNaN", "If", "Loop"} & set(operators)


def test_half_precision_casts_only_around_norms_softmax_and_rotary_angles(tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get("llama", "mixed", "bfloat16")
    full, half = (
        [node.name for node in ir.load(path).graph if node.op_type == "Cast"]
        for path in (tiny_exports.get("llama", "mixed").model_file, exported.model_file)
    )
    num_norms, num_attentions = 2 * 4 + 1 - 1, 2  # the layer without attention has no input norm
    # Each norm and each softmax casts up and down; cos and sin down; the logits up.
    assert len(half) == len(full) + 2 * num_norms + 2 * num_attentions + 2 + 1


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_keep_the_checkpoints_names_and_numbers_and_tied_ones_are_stored_once(
    family: str, tiny_exports: TinyExports
) -> None:
    exported = tiny_exports.get(family, "partial_heads")
    initializers = ir.load(exported.model_file).graph.initializers
    with safe_open(exported.checkpoint / "model.safetensors", framework="np") as tensors:
        names = set(tensors.keys())
        for name in names:
            stored = initializers[name].const_value.numpy()
            expected = tensors.get_tensor(name)
            transposed = expected.ndim == 2 and "embed_tokens" not in name
            assert (stored == (expected.T if transposed else expected)).all(), name
    assert ("lm_head.weight" in initializers) == (family == "qwen2")


def test_weights_lie_beside_the_model_and_small_constants_inside(tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get("llama")
    external = [
        tensor.name
        for tensor in onnx.load(exported.model_file, load_external_data=False).graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    ]
    assert "model.embed_tokens.weight" in external
    assert not [name for name in external if not name.startswith("model.")]
    assert (exported.folder / DATA_FILE).stat().st_size > exported.model_file.stat().st_size / 2


def test_the_manifest_tells_what_was_exported_and_the_facts_add_up(tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get("llama", "mixed", "float16")
    manifest = read_manifest(exported.folder, kind="onnx")
    assert is_intact(exported.folder, manifest)
    assert manifest.parameters == {"flavour": "portable", "dtype": "float16", "opset": 18}
    assert manifest.inputs == {"checkpoint": folder_digest(exported.checkpoint)}
    assert [layer["kind"] for layer in manifest.facts["layout"]["layers"]] == ["full", "value_only", "full", "skip"]
    # Layer 0 keeps 2 KV heads and layer 2 one, of 16 float16 numbers, for key and value.
    assert manifest.facts["kv_bytes_per_token"] == (2 + 1) * 16 * 2 * 2
    with safe_open(exported.checkpoint / "model.safetensors", framework="np") as tensors:
        elements = sum(tensors.get_tensor(name).size for name in tensors.keys())  # noqa: SIM118  not a dict
    assert manifest.facts["num_parameters"] == elements
    assert 0 <= manifest.facts["weight_bytes"] - 2 * elements < 1024  # constants and rotary frequencies
    assert manifest.facts["op_counts"]["Softmax"] == 2


def test_the_model_file_carries_its_layout(tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get("llama", "mixed")
    layout = json.loads(ir.load(exported.model_file).metadata_props["hlap.layout"])
    assert layout == read_manifest(exported.folder).facts["layout"]


def test_tokenizer_and_config_come_along_but_no_code_and_no_weights(tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get("llama", "dense")
    assert {path.name for path in exported.folder.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "manifest.json",
    }


def test_another_process_in_another_folder_writes_the_same_bytes(tiny_exports: TinyExports, tmp_path: Path) -> None:
    exported = tiny_exports.get("gemma2", "mixed")
    script = "import sys, pathlib; from hlap_export.export import export; export(*map(pathlib.Path, sys.argv[1:]))"
    arguments = [sys.executable, "-c", script, str(exported.checkpoint.resolve()), str(tmp_path / "again")]
    environment = os.environ | {"PYTHONHASHSEED": "4711", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run(arguments, check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert read_manifest(tmp_path / "again").files == read_manifest(exported.folder).files


def test_no_path_and_no_source_line_is_left_in_the_file(tiny_exports: TinyExports) -> None:
    content = tiny_exports.get("llama", "mixed").model_file.read_bytes()
    for trace in (b"site-packages", b".py", b'File "', b"pkg.torch", b"transformers", str(Path.home()).encode()):
        assert trace not in content


@pytest.mark.parametrize(
    ("arguments", "available"),
    [
        ({"flavour": "fancy"}, "portable"),
        ({"dtype": "int4"}, "float32, float16, bfloat16"),
    ],
)
def test_a_flavour_or_dtype_that_is_not_built_is_refused_with_what_is(
    arguments: dict[str, str], available: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=available):
        export(tmp_path / "not looked at", tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_rotary_frequencies_that_change_with_the_length_are_refused(rope_type: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "mistral")
    config = json.loads((dense / "config.json").read_text())
    own = {"factor": 4.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    config["rope_parameters"] = {"rope_type": rope_type, "rope_theta": 10000.0, **own}
    (dense / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=f"rope_type '{rope_type}'"):
        export(dense, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_in_use_is_refused_before_anything_is_traced(tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text("mine")
    with pytest.raises(OutputError, match="files in it"):
        export(tmp_path / "not looked at", tmp_path)


@pytest.mark.parametrize(("bytes_per_element", "expected"), [(4, 3 * 2 * 16 * 4), (2, 3 * 2 * 16 * 2)])
def test_kv_bytes_per_token_counts_only_cached_layers(
    bytes_per_element: int, expected: int, tiny_exports: TinyExports
) -> None:
    layout = read_layout(tiny_exports.get("llama", "mixed").checkpoint)
    assert kv_bytes_per_token(layout, bytes_per_element) == expected
