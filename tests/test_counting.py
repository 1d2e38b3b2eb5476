"""Estimates begin with these counts, so they must be those of the real tensors: of every family, for every plan."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from safetensors import safe_open

from hlap_export.checkpoint import layout_of, read_layout
from hlap_export.counting import Model, kv_bytes_per_token, model_at, num_weights, stored_bytes, weights_text
from hlap_export.export import export
from hlap_export.families import FAMILIES
from hlap_export.prune import prune
from tests.plan.test_accounting import LLAMA_3_1_8B
from tests.plans import ATTENTION, FITTED, save_tiny_fitted, tiny_plan
from tests.tiny import save_tiny


def values_on_disk(folder: Path) -> int:
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


@pytest.fixture(scope="module", params=FAMILIES)
def dense(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp(request.param), request.param)


def pruned(dense: Path, plan_name: str, folder: Path) -> Path:
    plan, side_file = tiny_plan(plan_name, read_layout(dense)), folder / "plan.safetensors"
    if plan.fits:
        plan = save_tiny_fitted(plan, read_layout(dense), side_file)
    prune(dense, plan, folder / "pruned", fitted=side_file)
    return folder / "pruned"


@pytest.mark.parametrize("plan_name", [*ATTENTION, *FITTED])
def test_the_count_is_that_of_the_tensors(dense: Path, plan_name: str, tmp_path: Path) -> None:
    pruned(dense, plan_name, tmp_path)
    assert num_weights(read_layout(tmp_path / "pruned")) == values_on_disk(tmp_path / "pruned")
    assert num_weights(read_layout(dense)) == values_on_disk(dense)


def test_biases_of_all_four_projections_are_counted(tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "llama", attention_bias=True)
    prune(dense, tiny_plan("mixed", read_layout(dense)), tmp_path / "pruned")
    for folder in (dense, tmp_path / "pruned"):
        assert num_weights(read_layout(folder)) == values_on_disk(folder)


def test_the_8b_shape_has_its_published_size() -> None:
    layout = layout_of(LLAMA_3_1_8B)
    assert num_weights(layout) == 8_030_261_248  # the total that the hub shows for Llama-3.1-8B
    assert stored_bytes(Model(layout=layout, dtype="bfloat16")) == 16_060_522_496
    # 32 layers of 8 KV heads of 128, keys and values, 2 bytes: 128 KiB.
    assert kv_bytes_per_token(Model(layout=layout, dtype="bfloat16")) == 128 * 1024


@pytest.mark.parametrize(
    ("flavour", "dtype", "block_size"),
    [
        ("portable", "float32", None),
        ("ort", "float32", None),
        ("ort", "int4", 16),
        ("ort", "int8", None),
        ("trt", "float16", None),
    ],
)
def test_what_an_export_stores_is_counted_with_its_blocks_and_rotary_tables(
    flavour: str, dtype: str, block_size: int | None, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "max_position_embeddings": 1024}
    dense = save_tiny(tmp_path / "dense", "qwen2", **sizes)  # of whole blocks, with tables as large as its weights
    weight_bytes = export(dense, tmp_path / "onnx", flavour=flavour, dtype=dtype, block_size=block_size).facts[
        "weight_bytes"
    ]
    assert stored_bytes(model_at(tmp_path / "onnx", kind="onnx")) == pytest.approx(weight_bytes, rel=5e-3)


@pytest.mark.parametrize("plan_name", ["mixed", "linear", "blocks"])
def test_the_arithmetic_shown_is_the_arithmetic_done(dense: Path, plan_name: str, tmp_path: Path) -> None:
    layout = read_layout(pruned(dense, plan_name, tmp_path))
    shown = weights_text(layout)
    ends, parts = ("(embedding, head)", "(embedding)", "(last norm)"), ("q, o", "k, v", "v, o", "map", "mlp")
    for words in (*ends, *parts, "norms, biases"):
        shown = shown.replace(words, "")
    shown = shown.split("[")[0] + "".join(part.split("]", 1)[1] for part in shown.split("[")[1:])
    assert eval(shown.replace("×", "*")) == num_weights(layout)


def test_the_dtype_is_read_from_the_tensors_where_the_config_is_silent_or_wrong(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"bfloat16"'))
    assert model_at(folder).dtype == "float32"
