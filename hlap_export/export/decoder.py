"""The traced module: flat tensors in, flat tensors out, a KV cache that is only the layers that attend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer


class FilledLayer(DynamicLayer):
    """A cache layer that starts from given tensors, possibly of length 0.

    The stock layer starts by concatenating to an empty tensor and asks whether it is empty, which a trace would
    turn into a node and a wrong constant. It also never forgets: a sliding window lives in the mask alone, so that
    every layer's cache has the same length.
    """

    def __init__(self, key_BKPE: torch.Tensor, value_BKPE: torch.Tensor) -> None:
        cast(Any, super()).__init__()
        self.keys, self.values = key_BKPE, value_BKPE
        self.dtype, self.device = key_BKPE.dtype, key_BKPE.device
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """The past's length P, symbolic while tracing."""
        return cast(torch.Tensor, self.keys).shape[-2]


class FlatDecoder(nn.Module):
    """A causal LM as a function of tensors, for tracing.

    Args:
        model: `forward(input_ids, attention_mask, position_ids, past_key_values)` -> `logits`.
        cached_layers: original indices of the layers that have KV entries, ascending.
    """

    def __init__(self, model: nn.Module, cached_layers: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.cached_layers = tuple(cached_layers)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: Sequence[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Logits [B, T, V] in float32, then key and value [B, K, P + T, E] of each cached layer.

        Args:
            input_ids: [B, T].
            attention_mask: [B, P + T], 1 where a token counts.
            position_ids: [B, T].
            past: key, value, key, value, ... of the cached layers, each [B, K, P, E].
        """
        cache = DynamicCache()
        pairs = dict(zip(self.cached_layers, zip(past[::2], past[1::2], strict=True), strict=True))
        layers = [
            FilledLayer(*pairs[index]) if index in pairs else DynamicLayer()
            for index in range(self.cached_layers[-1] + 1)
        ]
        cache.layers = cast(Any, layers)
        output = cast(Any, self.model)(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        present: list[torch.Tensor] = []
        for index in self.cached_layers:
            present += [cast(torch.Tensor, layers[index].keys), cast(torch.Tensor, layers[index].values)]
        return (output.logits.float(), *present)
