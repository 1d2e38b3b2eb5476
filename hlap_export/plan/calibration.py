"""The calibration pass: what enters each high layer, captured once, and the model's upper end as plain functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from hlap_export.checkpoint.modeling_hlap import AttentionFreeLayer
from hlap_export.families import AlphaTarget, Family

# Work is done in pieces that stay in a core's cache: larger ones are slower, and a large vocabulary would decide the
# memory.
TOKENS_AT_ONCE = 1024
LOGITS_AT_ONCE = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What the search needs of the dense model's run over the windows.

    Attributes:
        targets: the token to predict at each position but a window's last, [N, T-1] int64.
        layer_inputs: residual stream before each captured layer, layer index -> [N, T-1, D].
        perplexity: the dense model's.
    """

    targets: torch.Tensor
    layer_inputs: dict[int, torch.Tensor]
    perplexity: float

    def batches(self) -> Iterator[slice]:
        """The windows in batches of about `TOKENS_AT_ONCE` tokens."""
        return batches_of(*self.targets.shape)


class UpperLayers:
    """The decoder's layers without attention between tokens, its final norm and head, computed in plain torch.

    Shapes: N windows, T tokens, D hidden, V vocabulary.
    """

    def __init__(self, model: Any, family: Family) -> None:
        self._model = model
        self._family = family
        self._layers = model.model.layers
        self._softcap: float | None = getattr(model.config, "final_logit_softcapping", None)

    def attention_update(self, layer: int, h_NTD: torch.Tensor) -> torch.Tensor:
        """What a value-only layer with alpha 1 adds to the residual stream: Z, [N, T, D]. Layers are linear in alpha.

        `Z = o_proj(rep(v_proj(norm(h))))`, through the post-attention norm where alpha lands after it.
        """
        block = self._layers[layer]
        attention = block.self_attn
        v_NTKE = attention.v_proj(block.input_layernorm(h_NTD)).unflatten(-1, (-1, attention.head_dim))
        v_NTHE = v_NTKE.repeat_interleave(attention.num_key_value_groups, dim=-2)
        update = attention.o_proj(v_NTHE.flatten(-2))
        after_norm = self._family.alpha_target is AlphaTarget.POST_ATTENTION_NORM
        return block.post_attention_layernorm(update) if after_norm else update

    def mlp_half(self, layer: int, h_NTD: torch.Tensor) -> torch.Tensor:
        """The rest of the layer, after its attention: [N, T, D]."""
        return AttentionFreeLayer(self._layers[layer])(h_NTD)

    def loss_nats(self, h_NTD: torch.Tensor, targets_NT: torch.Tensor) -> float:
        """Sum of the tokens' losses, from the residual stream after the last layer."""
        hidden, targets = self._model.model.norm(h_NTD).flatten(0, 1), targets_NT.flatten()
        chunk = max(1, LOGITS_AT_ONCE // self._model.config.vocab_size)
        total = 0.0
        for start in range(0, len(targets), chunk):
            h_CD, target_C = hidden[start : start + chunk], targets[start : start + chunk]
            logits_CV = self._model.lm_head(h_CD)
            if self._softcap is not None:
                logits_CV = torch.tanh(logits_CV / self._softcap) * self._softcap
            losses_C = torch.nn.functional.cross_entropy(logits_CV.float(), target_C, reduction="none")
            total += losses_C.sum(dtype=torch.float64).item()
        return total


@torch.inference_mode()
def calibrate(
    model: Any, upper: UpperLayers, windows_NT: torch.Tensor, *, first_layer: int, on_windows: Callable[[int], None]
) -> Calibration:
    """Run the dense model once over the windows and keep what enters each layer from `first_layer` up.

    Args:
        model: the dense model.
        upper: its upper layers.
        windows_NT: token ids, [N, T].
        first_layer: the lowest layer whose input is kept.
        on_windows: called with the number of windows done since the last call.
    """
    layers = model.model.layers
    # The final norm's input stands at index L, one past the last layer.
    captured: dict[int, list[torch.Tensor]] = {index: [] for index in range(first_layer, len(layers) + 1)}
    hooks = [
        module.register_forward_pre_hook(_keep_input(captured[index]))
        for index, module in enumerate([*layers, model.model.norm])
        if index in captured
    ]
    try:
        for rows in batches_of(*windows_NT.shape):
            model.model(input_ids=windows_NT[rows, :-1], use_cache=False)
            on_windows(len(windows_NT[rows]))
    finally:
        for hook in hooks:
            hook.remove()
    inputs = {index: torch.cat(kept) for index, kept in captured.items()}
    targets, last = windows_NT[:, 1:], inputs.pop(len(layers))
    loss = sum(upper.loss_nats(last[rows], targets[rows]) for rows in batches_of(*targets.shape))
    return Calibration(targets=targets, perplexity=math.exp(loss / targets.numel()), layer_inputs=inputs)


def batches_of(num_windows: int, window_length: int) -> Iterator[slice]:
    """Slices over the windows, each of about `TOKENS_AT_ONCE` tokens and at least one window."""
    size = max(1, TOKENS_AT_ONCE // window_length)
    return (slice(start, start + size) for start in range(0, num_windows, size))


def _keep_input(kept: list[torch.Tensor]) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
    """A forward pre-hook that keeps the module's first positional input."""

    def hook(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        kept.append(arguments[0])

    return hook
