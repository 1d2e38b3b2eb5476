"""A checkpoint's decoder, layer by layer: what fits in memory stays there, the rest is loaded while it is used.

The model is built without weights. Its own forward pass, run once with stand-ins for the layers, embeds the tokens and
tells what each layer is called with (masks, windows, rotary tables), so that a layer called here is called as
transformers calls it. Layers get their weights from safetensors, converted to float32.

Shapes: N windows, T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import accelerate
import accelerate.utils
import torch
from torch import nn

from hlap_export.checkpoint.head import TOKENS_AT_ONCE, VOCABULARY_AT_ONCE, Head
from hlap_export.checkpoint.layout import ModelLayout, read_layout
from hlap_export.checkpoint.loading import check_weights, model_class_of
from hlap_export.checkpoint.placement import FLOAT_BYTES, Device, Placement, memory_of_devices, place
from hlap_export.checkpoint.reading import WeightReader
from hlap_export.checkpoint.tensors import EMBEDDING, HEAD
from hlap_export.machine import return_freed_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """What goes through a layer at once: `windows` N of `length` T tokens."""

    windows: int
    length: int

    def state_bytes(self, hidden_size: int) -> int:
        """Size of one residual stream [N, T, D]."""
        return self.windows * self.length * hidden_size * FLOAT_BYTES


NO_WEIGHTS: Mapping[str, torch.Tensor] = {}


class LoadedLayer:
    """A decoder layer whose weights are in memory, on `device`."""

    def __init__(self, index: int, module: nn.Module, device: Device, arguments: Any) -> None:
        self.index = index
        self.module: Any = module
        self.device = device
        self._arguments = arguments

    def __call__(self, h_NTD: torch.Tensor, weights: Mapping[str, torch.Tensor] = NO_WEIGHTS) -> torch.Tensor:
        """The residual stream [N, T, D] after the layer, called as the whole model calls it.

        Args:
            h_NTD: what enters it.
            weights: others than its own, by their names in `module`.
        """
        arguments = self._arguments(h_NTD.shape[:2], self.device)
        return torch.func.functional_call(self.module, dict(weights), (h_NTD.to(self.device),), arguments)


class Decoder:
    """The embedding, the layers and the head of one checkpoint, for forward passes without cache or padding.

    Use `open_decoder` to make one.

    Attributes:
        num_layers: decoder layers.
        placement: where the parts lie.
        head: the final norm and the output head.
    """

    def __init__(self, model: Any, reader: WeightReader, placement: Placement) -> None:
        self._model = model
        self._reader = reader
        self.placement = placement
        self._layers = list(model.model.layers)
        self.num_layers = len(self._layers)
        self._calls: dict[tuple[int, ...], list[dict[str, Any]]] = {}
        self._held: dict[int, dict[str, torch.Tensor]] = {}
        self._load_residents()
        self.head = self._head()

    def embed(self, ids_NT: torch.Tensor) -> torch.Tensor:
        """The residual stream [N, T, D] before layer 0; only the rows of these tokens are read."""
        unique, inverse = cast(Any, torch).unique(ids_NT, return_inverse=True)
        table = self._model.model.embed_tokens
        without_weights = table.weight
        name = EMBEDDING if EMBEDDING in self._reader else HEAD  # a tied pair is stored under either name
        table.weight = nn.Parameter(self._reader.read_rows(name, unique.tolist()), requires_grad=False)
        try:
            return self._record(input_ids=inverse)
        finally:
            table.weight = without_weights

    @contextmanager
    def layer(self, index: int) -> Generator[LoadedLayer]:
        """The layer with its weights, which are dropped afterwards unless they are resident."""
        module, where = self._layers[index], self.placement.layers[index]
        device, is_resident = self.placement.device(where), self.placement.is_resident(where)
        if not is_resident:
            weights = self._held.get(index) or self._read_layer(index)
            self._load(module, weights, device)
            del weights
        try:
            yield LoadedLayer(index, module, device, partial(self._arguments, index))
        finally:
            if not is_resident:
                module.to("meta")
                return_freed_memory()  # measured: without it a search that may take 0.8 GiB took 1.25

    def at_rest(self, h_NTD: torch.Tensor) -> torch.Tensor:
        """The same, where it waits for the next layer: in RAM, unless everything is resident where it is computed."""
        return h_NTD if self.placement.is_resident_whole else h_NTD.cpu()

    def batches_at_once(self, batch: Batch, copies: int) -> int:
        """Batches, at least one, of which `copies` residual streams each may wait in memory between two layers."""
        size = copies * batch.state_bytes(self._model.config.hidden_size)
        return max(1, self.placement.states_bytes // size)

    def _load_residents(self) -> None:
        for index, (module, where) in enumerate(zip(self._layers, self.placement.layers, strict=True)):
            if self.placement.is_resident(where):
                self._load(module, self._read_layer(index), where)
            elif where != "disk":
                self._held[index] = self._read_layer(index)
        norm = self._model.model.norm
        self._load(norm, {name: self._reader.read(f"model.norm.{name}") for name in norm.state_dict()}, "cpu")

    def _read_layer(self, index: int) -> dict[str, torch.Tensor]:
        names = self._layers[index].state_dict()
        return {name: self._reader.read(f"model.layers.{index}.{name}") for name in names}

    @staticmethod
    def _load(module: nn.Module, weights: dict[str, torch.Tensor], device: Device) -> None:
        module.load_state_dict({name: tensor.to(device) for name, tensor in weights.items()}, assign=True)

    def _head(self) -> Head:
        config, where = self._model.config, self.placement.head
        is_tied = config.tie_word_embeddings and EMBEDDING in self._reader
        name = EMBEDDING if is_tied else HEAD
        device = self.placement.device(where)
        w_VD = None if where == "disk" else self._reader.read(name).to(where)

        def rows(start: int, stop: int) -> torch.Tensor:
            return self._reader.read(name, start, stop) if w_VD is None else w_VD[start:stop]

        return Head(
            copy.deepcopy(self._model.model.norm).to(device),
            rows,
            vocab_size=config.vocab_size,
            softcap=getattr(config, "final_logit_softcapping", None),
            device=device,
        )

    def _arguments(self, index: int, shape: tuple[int, ...], device: Device) -> dict[str, Any]:
        if shape not in self._calls:
            self._record(inputs_embeds=torch.zeros(*shape, self._model.config.hidden_size))
        return cast(Any, accelerate.utils).send_to_device(self._calls[shape][index], device)

    def _record(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Run the model's own forward with stand-ins for the layers: what each is called with, and layer 0's input."""
        stand_ins = [_StandIn() for _ in self._layers]
        decoder = self._model.model
        layers = decoder.layers
        decoder.layers = nn.ModuleList(stand_ins)
        try:
            decoder(**inputs, use_cache=False)
        finally:
            decoder.layers = layers
        h_NTD = stand_ins[0].seen
        self._calls[tuple(h_NTD.shape[:2])] = [stand_in.arguments for stand_in in stand_ins]
        return h_NTD


class _StandIn(nn.Module):
    """Remembers what a layer would have been called with."""

    seen: torch.Tensor
    arguments: dict[str, Any]

    def forward(self, hidden_states: torch.Tensor, **arguments: Any) -> torch.Tensor:
        self.seen, self.arguments = hidden_states, arguments
        return hidden_states


def open_decoder(
    model: Path, *, batch: Batch, copies: int = 1, beside_bytes: int = 0, max_memory: int | None = None
) -> Decoder:
    """A dense or pruned checkpoint's decoder, as much of it loaded as memory allows.

    Args:
        model: a checkpoint folder.
        batch: the largest that goes through a layer at once.
        copies: residual streams of a batch that are held between two layers.
        beside_bytes: what the caller computes with while a layer is in use.
        max_memory: most bytes of RAM for the whole process; None for what the machine has free.

    Raises:
        CheckpointError: unreadable, unsupported, or config and weights disagree.
        BudgetError: not even one layer fits.
    """
    reader = WeightReader(check_weights(model))
    model_class = model_class_of(model)
    config = model_class.config_class.from_pretrained(model, local_files_only=True)
    with cast(Any, accelerate).init_empty_weights(include_buffers=False):
        skeleton = model_class._from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    layout, eager = read_layout(model), skeleton.config._attn_implementation == "eager"
    working = working_bytes(layout, batch, eager=eager) + copies * batch.state_bytes(layout.hidden_size) + beside_bytes
    placement = place(skeleton.model.layers, skeleton.lm_head, memory_of_devices(max_memory), working_bytes=working)
    return Decoder(skeleton, reader, placement)


def working_bytes(layout: ModelLayout, batch: Batch, *, eager: bool) -> int:
    """What a layer or the head takes for one batch beside weights and residual streams, a little rounded up."""
    # At the same time alive: four activations of the MLP, or queries, keys, values and outputs with their copies.
    per_token = 4 * layout.intermediate_size + 8 * layout.hidden_size
    total = batch.windows * batch.length * per_token + 2 * TOKENS_AT_ONCE * VOCABULARY_AT_ONCE
    if eager:  # scores of all heads, their mask and their softmax
        total += 3 * batch.windows * layout.num_heads * batch.length**2
    return total * FLOAT_BYTES
