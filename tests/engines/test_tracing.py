"""What an engine hands out from between its operators, against the checkpoint's own hidden states."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hlap_export.checkpoint import load_model, read_layout
from hlap_export.engines import tracer_of
from hlap_export.verify.graph_names import EMBEDDING, residual_values, tensor_values
from tests.tiny import NUM_LAYERS, VOCAB_SIZE
from tests.tiny_engines import TinyEngine, TinyEngines

PADDING, LENGTH = 3, 9
IDS = np.random.default_rng(5).integers(0, VOCAB_SIZE, (2, LENGTH))


def traced(engine: TinyEngine, names: list[str]) -> list[dict[str, Any]]:
    """The values of two rows, the second with padding on the left: a prompt of 6, then three steps."""
    mask = np.ones_like(IDS)
    mask[1, :PADDING] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    tracer: Any = tracer_of(engine.folder)
    parts: list[Any] = []
    with tracer.open_traced(engine.folder, names, threads=1) as session:
        cache = session.empty_cache(2, LENGTH)
        for start, stop in ((0, 6), (6, 7), (7, 8), (8, 9)):
            new = (IDS[:, start:stop], mask[:, :stop], positions[:, start:stop])
            values, cache = session.run(*new, cache)
            parts.append(values)
    return [{name: np.concatenate([part[row][name] for part in parts]) for name in parts[0][row]} for row in range(2)]


def hidden_states(model: Any, ids: torch.Tensor) -> tuple[list[Any], Any]:
    """What enters layer 0 and what leaves each layer, and the logits; transformers' own list ends with a norm."""
    leaving: list[Any] = []
    hooks = [
        layer.register_forward_hook(lambda *call: leaving.append(call[2][0].numpy())) for layer in model.model.layers
    ]
    with torch.inference_mode():
        output = model(input_ids=ids, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return [output.hidden_states[0][0].numpy(), *leaving], output.logits[0].numpy()


@pytest.mark.parametrize(
    ("family", "flavour"),
    [("llama", "ort"), ("llama", "portable"), ("llama", "trt"), ("gemma2", "ort"), ("gemma2", "portable")],
)
def test_the_residual_stream_between_layers_is_transformers_hidden_states(
    tiny_engines: TinyEngines, family: str, flavour: str
) -> None:
    engine = tiny_engines.get(family, "mixed", "float32", flavour)
    tracer: Any = tracer_of(engine.folder)
    names = residual_values(tracer.graph_values(engine.folder), read_layout(engine.checkpoint))
    assert sorted(names) == [EMBEDDING, *range(NUM_LAYERS)]
    model = load_model(engine.checkpoint, dtype=torch.float32)
    for row, (found, skipped) in enumerate(zip(traced(engine, list(names.values())), (0, PADDING), strict=True)):
        expected, logits = hidden_states(model, torch.tensor(IDS[row : row + 1, skipped:]))
        for layer, name in names.items():
            np.testing.assert_allclose(found[name], expected[layer + 1], atol=3e-5, err_msg=f"after layer {layer}")
        np.testing.assert_allclose(found["logits"], logits, atol=3e-5)


def test_a_layers_tensors_are_named_by_their_modules(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get("llama", "mixed", "float32", "ort")
    tracer: Any = tracer_of(engine.folder)
    values = tracer.graph_values(engine.folder)
    full, value_only, skipped = (set(tensor_values(values, layer)) for layer in (0, 1, 3))
    mlp = {"post_attention_layernorm", "mlp.gate_proj", "mlp.act_fn", "mlp.up_proj", "mlp", "mlp.down_proj"}
    assert full >= mlp | {"input_layernorm", "self_attn", "self_attn.qkv_proj", "self_attn.o_proj"}
    assert value_only == mlp | {"input_layernorm", "self_attn.o_proj"}
    assert skipped == mlp


def test_the_engine_is_not_changed_by_looking_into_it(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    engine = tiny_engines.get("llama", "mixed", "float32", "ort")
    copy = shutil.copytree(engine.folder, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    tracer: Any = tracer_of(copy)
    name = tensor_values(tracer.graph_values(copy), 0)["mlp.down_proj"]
    with tracer.open_traced(copy, [name], threads=1):
        pass
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
