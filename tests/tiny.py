"""Tiny random models, one per family: small enough to run hundreds of times, odd enough to catch a wrong axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from hlap_export.families import FAMILIES

NUM_LAYERS = 4
VOCAB_SIZE = 96

# hidden != heads * head_dim where the family allows it, so that a swapped dimension can't go unnoticed.
COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 7},
    "qwen2": {},
    "gemma2": {
        "sliding_window": 7,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "qwen3": {},
}


def tiny_model(model_type: str, *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A random dense model of the family whose norms, biases and embeddings are all non-trivial."""
    family = FAMILIES[model_type]
    config = getattr(transformers, family.config_class)(**COMMON | OWN[model_type] | overrides)
    torch.manual_seed(seed)
    model = getattr(transformers, family.model_class)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.to(dtype)


def save_tiny(folder: Path, model_type: str, *, shard_size: str = "5GB", **arguments: Any) -> Path:
    """Write a tiny dense checkpoint (no tokenizer) and return its folder."""
    tiny_model(model_type, **arguments).save_pretrained(folder, max_shard_size=shard_size)
    return folder


def store_tied_pair_as_head(checkpoint: Path) -> Path:
    """Store a tied pair as `safetensors.torch.save_model` does, under the first of its names."""
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = weights.pop("model.embed_tokens.weight")
    save_file(weights, path, metadata={"format": "pt"})
    return checkpoint
