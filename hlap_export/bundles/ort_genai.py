"""Target `ort-genai`: the folder that onnxruntime-genai's `Model` loads, with a genai_config.json.

Written for version 0.18, model type "decoder". What it does with an engine:

* It takes the layers that keep a cache from the graph's input names, and each one's heads from their shapes. A plan
  with holes or with fewer heads in some layers therefore needs no word about it here.
* The cache is concatenated (`portable`), or written in place into buffers that hold `max_length` tokens (`ort`).
* It pads a batch on the right. `portable` graphs count sliding windows in places, padding included, which is wrong for
  the shorter prompts of a batch: with windows they are refused.
* It gives the graph a buffer for the logits of every token of a prompt and reads each row's last real one, so that
  `num_logits_to_keep` stays 0: a graph whose default is 1 fails ("computed output shape"), and what `set_model_input`
  gives under this name isn't fed. A prompt costs tokens x vocabulary floats and the head's product for each token more
  than with our own engine, as it does with its builder's graphs.
* Its `Engine` for continuous batching asks for paged attention, which no flavour has.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hlap_export.artifacts import Manifest
from hlap_export.bundles.genai_trial import try_out, why_not_tried
from hlap_export.checkpoint import ModelLayout, read_layout
from hlap_export.checkpoint.generation_config import GenerationDefaults, read_generation_defaults
from hlap_export.engines.base import GRAPH
from hlap_export.errors import BundleError

CONFIG = "genai_config.json"
PROVIDER_OPTIONS: dict[str, list[Any]] = {"CPUExecutionProvider": [], "CUDAExecutionProvider": [{"cuda": {}}]}
OPTIMISATION = {"CPUExecutionProvider": "ORT_DISABLE_ALL", "CUDAExecutionProvider": "ORT_ENABLE_EXTENDED"}
"""As the engine itself loads its graph: the CPU's was optimised when it was built, what was verified is what runs; a
GPU's is stored as it was exported."""

IN_PLACE_FLAVOURS = ("ort",)
FLAVOURS = (*IN_PLACE_FLAVOURS, "portable")
# In-place buffers are allocated whole at the start. A model card's 131,072 tokens would be 16 GiB for an 8B model: who
# wants more than this asks for it, `params.set_search_options(max_length=...)`.
DEFAULT_MAX_LENGTH = 4096

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def complete(folder: Path, engine_dir: Path, engine: Manifest) -> dict[str, Any]:
    """Add genai_config.json to an engine's files, and try the folder where onnxruntime-genai is installed.

    Raises:
        BundleError: onnxruntime-genai can't hold this engine, or computes something else with it.
    """
    _require_expressible(folder, engine)
    config = genai_config(folder, engine)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    reason = why_not_tried(engine.facts["provider"])
    return {
        "max_length": config["search"]["max_length"],
        "past_present_share_buffer": config["search"]["past_present_share_buffer"],
        "kv_bytes_per_token": engine.facts["kv_bytes_per_token"],
        "tried_with": f"nothing: {reason}" if reason else try_out(folder, engine_dir),
    }


def genai_config(folder: Path, engine: Manifest) -> dict[str, Any]:
    """What genai_config.json says: shapes, names, special tokens, and how its makers meant the model to be sampled."""
    layout, defaults = read_layout(folder), read_generation_defaults(folder)
    in_place = engine.parameters["flavour"] in IN_PLACE_FLAVOURS
    return {
        "model": {
            "type": "decoder",
            **_special_tokens(defaults),
            "context_length": layout.max_positions,
            "vocab_size": engine.facts["vocab_size"],
            "decoder": {
                "filename": GRAPH,
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "graph_optimization_level": OPTIMISATION[engine.facts["provider"]],
                    "provider_options": PROVIDER_OPTIONS[engine.facts["provider"]],
                },
                "hidden_size": layout.hidden_size,
                "head_size": layout.head_dim,
                "num_attention_heads": layout.num_heads,
                "num_key_value_heads": layout.num_kv_heads,
                "num_hidden_layers": layout.num_layers,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": defaults.do_sample,
            "temperature": defaults.temperature,
            "top_k": defaults.top_k,
            "top_p": defaults.top_p,
            "repetition_penalty": defaults.repetition_penalty,
            "max_length": min(layout.max_positions, DEFAULT_MAX_LENGTH) if in_place else layout.max_positions,
            "past_present_share_buffer": in_place,
        },
    }


def _special_tokens(defaults: GenerationDefaults) -> dict[str, Any]:
    """Ids by genai's names; a model without padding is padded with its first stop token, as in transformers."""
    ids: dict[str, Any] = {}
    if defaults.bos_token_id is not None:
        ids["bos_token_id"] = defaults.bos_token_id
    if defaults.eos_token_ids:
        ids["eos_token_id"] = list(defaults.eos_token_ids)
        ids["pad_token_id"] = defaults.eos_token_ids[0]
    if defaults.pad_token_id is not None:
        ids["pad_token_id"] = defaults.pad_token_id
    return ids


def _require_expressible(folder: Path, engine: Manifest) -> None:
    if engine.facts["provider"] not in PROVIDER_OPTIONS:
        raise BundleError(
            where="the engine",
            expected=f"for ort-genai one of onnxruntime, on {' or '.join(PROVIDER_OPTIONS)}",
            found=f"one of {engine.parameters['engine']}, on {engine.facts['provider']}",
            fix="build with --engine onnxruntime",
        )
    _require_expressible_graph(read_layout(folder), engine.parameters["flavour"])
    missing = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if missing:
        raise BundleError(
            where="the engine's tokenizer",
            expected=f"{' and '.join(TOKENIZER_FILES)}, the one form that onnxruntime-genai reads",
            found=f"no {' and no '.join(missing)}",
            fix="save the model's tokenizer with transformers (AutoTokenizer ... save_pretrained) and export again",
        )


def _require_expressible_graph(layout: ModelLayout, flavour: str) -> None:
    if flavour not in FLAVOURS:
        raise BundleError(
            where="the engine's graph",
            expected=f"one of flavour {' or '.join(FLAVOURS)}, whose inputs onnxruntime-genai knows",
            found=f"flavour {flavour}",
            fix="export with --flavour ort and build again",
        )
    if flavour == "portable" and _has_windows(layout):
        raise BundleError(
            where="the engine's graph",
            expected="attention that onnxruntime-genai's padding, on the right, doesn't change",
            found=f"flavour portable with sliding windows of {layout.sliding_window} places, padding included",
            fix="export with --flavour ort, which counts tokens, and build again",
        )


def _has_windows(layout: ModelLayout) -> bool:
    """Whether a layer with attention sees fewer tokens than the longest context has."""
    if layout.sliding_window is None or layout.sliding_window >= layout.max_positions:
        return False
    types = layout.layer_types
    return any(types is None or types[layer.index] == "sliding_attention" for layer in layout.cached_layers)
