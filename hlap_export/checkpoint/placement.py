"""Which parts of a model stay in memory and on which device, and which are loaded from disk each time they are used.

The decision is accelerate's device map over the model without weights, so that a CPU, one GPU and several GPUs differ
in nothing but the map. Layers are offered from the last one down, because the search uses the last ones most.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import accelerate.utils
import psutil
from torch import nn

from hlap_export.errors import BudgetError
from hlap_export.machine import memory_available_bytes

Device = int | str
"""A GPU's number, or "mps", or "cpu"; in a device map also "disk"."""

# Allocators round up, and libraries take buffers of their own.
USABLE = 0.9
FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where each part lies and is computed.

    Attributes:
        layers: each decoder layer's place: a device, or "disk".
        head: the output head's place.
        main: the device that computes what doesn't lie on one: the first GPU, or else the CPU.
        states_bytes: memory for hidden states between layers; 0 where every part is resident, for then one batch goes
            through all layers at once.
    """

    layers: tuple[Device, ...]
    head: Device
    main: Device
    states_bytes: int

    def is_resident(self, place: Device) -> bool:
        """Whether a part that lies there is computed where it lies, and never moved."""
        return place != "disk" and (place != "cpu" or self.main == "cpu")

    def device(self, place: Device) -> Device:
        """The device that computes a part that lies there."""
        return place if self.is_resident(place) else self.main

    @property
    def num_streamed_layers(self) -> int:
        """Layers that are loaded from disk each time they are used."""
        return self.layers.count("disk")

    @property
    def is_resident_whole(self) -> bool:
        return all(self.is_resident(place) for place in (*self.layers, self.head))


def memory_of_devices(max_memory: int | None) -> dict[Device, int]:
    """Bytes that may still be used on each device, GPUs first.

    Args:
        max_memory: most bytes of RAM that this process may take in all, what it has already included; None for what
            the machine has free.
    """
    found = cast(dict[Device, int], cast(Any, accelerate.utils).get_max_memory())
    free = memory_available_bytes() or found.get("cpu", 0)
    if max_memory is not None:
        free = min(free, max_memory - psutil.Process().memory_info().rss)
    gpus = {device: size for device, size in found.items() if device != "cpu"}
    return {device: max(0, int(USABLE * size)) for device, size in (gpus | {"cpu": free}).items()}


def place(layers: nn.ModuleList, head: nn.Module, memory: Mapping[Device, int], *, working_bytes: int) -> Placement:
    """Place the layers and the head of a model without weights.

    Args:
        layers: the decoder layers, on the meta device.
        head: the output head, on the meta device.
        memory: what may be used, by device.
        working_bytes: what computing one batch takes beside the weights.

    Raises:
        BudgetError: there isn't room for a single layer.
    """
    _require_one_layer(layers, memory, working_bytes)
    left = {device: max(0, size - working_bytes) for device, size in memory.items()}
    placement = _map(layers, head, left, states_bytes=0)
    if placement.is_resident_whole:
        return placement
    # Every load then serves as many hidden states as fit in a quarter of the memory.
    states_bytes = memory["cpu"] // 4
    return _map(layers, head, left | {"cpu": max(0, left["cpu"] - states_bytes)}, states_bytes=states_bytes)


def _require_one_layer(layers: nn.ModuleList, memory: Mapping[Device, int], working_bytes: int) -> None:
    largest = max(sum(parameter.numel() for parameter in layer.parameters()) for layer in layers) * FLOAT_BYTES
    main = next(iter(memory))
    if memory[main] < largest + working_bytes:
        needed = (largest + working_bytes) / USABLE
        raise BudgetError(
            where=f"memory of {main if isinstance(main, str) else f'GPU {main}'}",
            expected=f"{needed / 2**20:.0f} MiB more than is held already: {largest / 2**20:.0f} MiB for the "
            f"largest layer in float32 and {working_bytes / 2**20:.0f} MiB to compute one batch",
            found=f"{memory[main] / USABLE / 2**20:.0f} MiB left to use",
            fix="allow more memory, or take shorter windows",
        )


def _map(layers: nn.ModuleList, head: nn.Module, memory: Mapping[Device, int], *, states_bytes: int) -> Placement:
    last_first = {f"layer_{index}": layers[index] for index in reversed(range(len(layers)))}
    device_map = cast(
        dict[str, Device],
        cast(Any, accelerate).infer_auto_device_map(
            nn.ModuleDict(last_first | {"head": head}),
            max_memory=dict(memory),
            no_split_module_classes=sorted({type(layer).__name__ for layer in layers}),
            clean_result=False,
        ),
    )
    return Placement(
        layers=tuple(device_map[f"layer_{index}"] for index in range(len(layers))),
        head=device_map["head"],
        main=next(iter(memory)),
        states_bytes=states_bytes,
    )
