"""A Hugging Face decoder whose layers differ: full attention, fewer heads, value-only, a linear map, or none.

Shipped with every pruned checkpoint and loaded with `trust_remote_code=True`; needs torch and transformers >= 5.23
only. The stock architecture does everything but these things, chosen per layer by `config.per_layer_config`:

* `num_attention_heads`, `num_key_value_heads`: the stock attention, with these head counts;
* `attention_kind: "value_only"`: attention without queries and keys. Each token attends to itself, so that attention
  is `o_proj(v_proj(x))`, with HARP's alpha and the sum over each group's query heads folded into the weights;
* `attention_kind: "linear"`: a linear map with a bias instead of the attention and of the norm that may follow it:
  `o_proj(v_proj(x))` through `linear_rank` values, or `o_proj(x)` where that is 0;
* `skip`, a list: "attention" leaves the attention and its norms out, "mlp" the MLP and its norms.

Layers that don't attend keep no KV cache. Layer 0 always attends: the cache's length is read from it.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


class PerLayerConfig(PreTrainedConfig):
    """What a layer-wise pruned architecture adds to its stock config."""

    attention_kind: str = "full"
    value_only_output_bias: bool = False
    linear_rank: int = 0

    def validate_architecture(self) -> None:
        """Accept layers whose head counts don't multiply up to the hidden size."""


class ValueOnlyAttention(nn.Module):
    """`o_proj(v_proj(x))`: [B, T, hidden] -> [B, T, num_key_value_heads * head_dim] -> [B, T, hidden]."""

    def __init__(self, config: Any, head_dim: int) -> None:
        super().__init__()
        value_size = config.num_key_value_heads * head_dim
        self.v_proj = nn.Linear(config.hidden_size, value_size, bias=False)
        self.o_proj = nn.Linear(value_size, config.hidden_size, bias=config.value_only_output_bias)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.o_proj(self.v_proj(hidden_states)), None


class LinearAttention(nn.Module):
    """A fitted linear map: [B, T, hidden] -> [B, T, hidden], in two steps where it has a rank."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        inputs = config.linear_rank or config.hidden_size
        self.v_proj = nn.Linear(config.hidden_size, inputs, bias=False) if config.linear_rank else nn.Identity()
        self.o_proj = nn.Linear(inputs, config.hidden_size, bias=True)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.o_proj(self.v_proj(hidden_states)), None


class AttentionFreeLayer(GradientCheckpointingLayer):
    """The MLP half of a stock decoder layer: `x + norm?(mlp(norm(x)))`."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.mlp = layer.mlp
        if hasattr(layer, "pre_feedforward_layernorm"):  # Gemma-2: a norm on each side of the MLP
            self.pre_feedforward_layernorm = layer.pre_feedforward_layernorm
            self.post_feedforward_layernorm = layer.post_feedforward_layernorm
        else:  # elsewhere `post_attention_layernorm` is the MLP's input norm
            self.post_attention_layernorm = layer.post_attention_layernorm

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        if hasattr(self, "pre_feedforward_layernorm"):
            update = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(hidden_states)))
        else:
            update = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + update


class MlpFreeLayer(GradientCheckpointingLayer):
    """The attention half of a stock decoder layer, `x + norm?(attention(norm(x)))`; or else nothing."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.has_attention = hasattr(layer, "self_attn")
        if self.has_attention:
            self.input_layernorm = layer.input_layernorm
            self.self_attn = layer.self_attn
            if hasattr(layer, "pre_feedforward_layernorm"):  # else `post_attention_layernorm` is the MLP's input norm
                self.post_attention_layernorm = layer.post_attention_layernorm

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        if not self.has_attention:
            return hidden_states
        update, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **arguments)
        if hasattr(self, "post_attention_layernorm"):
            update = self.post_attention_layernorm(update)
        return hidden_states + update


class PerLayerForCausalLM(PreTrainedModel):
    """Mixed in before a stock `...ForCausalLM`: rebuilds the layers that `per_layer_config` says are different."""

    model: Any

    def __init__(self, config: Any) -> None:
        overrides = config.to_dict().get("per_layer_config")
        config.per_layer_config = None
        super().__init__(config)  # pyright: ignore[reportUnknownMemberType]  # the dense model, whose layers share one shape
        config.per_layer_config = overrides
        for index, layer_config in enumerate(config.per_layer_config):
            layer = self.model.layers[index]
            skipped = getattr(layer_config, "skip", ())
            if "attention" in skipped:
                layer = AttentionFreeLayer(layer)
            elif layer_config.attention_kind == "linear":
                layer.self_attn = LinearAttention(layer_config)
                if hasattr(layer, "pre_feedforward_layernorm"):
                    layer.post_attention_layernorm = nn.Identity()
            elif layer_config.attention_kind == "value_only":
                layer.self_attn = ValueOnlyAttention(layer_config, layer.self_attn.head_dim)
            elif layer_config.num_attention_heads * layer_config.head_dim != layer.self_attn.q_proj.out_features:
                layer.self_attn = type(layer.self_attn)(layer_config, index)
                layer.self_attn.config = config  # so that set_attn_implementation reaches this layer too
            self.model.layers[index] = MlpFreeLayer(layer) if "mlp" in skipped else layer
        self.post_init()
