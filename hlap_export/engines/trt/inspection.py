"""The layers of a finished engine: which kernels run, for which operators of the graph, in which phase."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import tensorrt

_LINE = re.compile(r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), ")
_TACTIC = re.compile(r"TacticName: (?P<tactic>.*?), StreamId")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_OUTPUTS = re.compile(r"Outputs: \[ (?P<outputs>.*?)\], (?:TacticName|ParameterType)")
_TENSOR = re.compile(
    r"Name: (?P<name>.*?), (?:Location: \w+, )?Dimensions: \[(?P<dims>[-\d,]*)\].*?Datatype: (?P<dtype>\w+)"
)
# The compiler numbers the parts that it compiles: _myl1_, _myl3_, ...
_PART = re.compile(r"_myl(\d+)_")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_BINDING = re.compile(
    r"\s+Name: (?P<name>[^,]+), IOMode: (?P<mode>Input|Output), DataType: (?P<dtype>\w+), "
    r"Dimensions: \[(?P<dims>[-\d,]*)\]"
)
_DTYPE_NAMES = {"BF16": "bfloat16"}
_ATTENTION_KERNEL = re.compile(r"_gem[mv]_mha")
_DECODER_LAYER = re.compile(r"\bmodel\.layers\.(\d+)\.self_attn\b")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLayer:
    """One kernel.

    Attributes:
        name: the compiler's.
        kind: gemm, kgen (generated), ...
        tactic: its implementation, where the compiler tells.
        nodes: names of the graph's nodes that it computes.
        outputs: "name: dtype [dims]".
        profile: the phase's number.
    """

    name: str
    kind: str
    tactic: str
    nodes: tuple[str, ...]
    outputs: tuple[str, ...]
    profile: int

    @property
    def fused_attention(self) -> int | None:
        """The decoder layer whose whole attention this kernel computes; None if it isn't such a kernel.

        A layer that the compiler doesn't tell is -1.
        """
        if not _ATTENTION_KERNEL.search(self.name):
            return None
        found = [match for node in self.nodes if (match := _DECODER_LAYER.search(node))]
        return int(found[0][1]) if found else -1


def layers_of(lines: Sequence[str]) -> tuple[EngineLayer, ...]:
    """The kernels, from the lines that the compiler writes at the end of a build."""
    found = [line for line in lines if _LINE.match(line)]
    profiles = _profiles_of_parts(found)
    return tuple(_layer(line, profiles) for line in found)


def _profiles_of_parts(lines: Sequence[str]) -> dict[str, int]:
    """Which profile each part belongs to: the names of some of its kernels tell."""
    return {
        part[1]: int(profile[1])
        for line in lines
        if (part := _PART.search(line)) and (profile := _PROFILE.search(line))
    }


def _layer(line: str, profiles: dict[str, int]) -> EngineLayer:
    head, tactic, outputs = _LINE.match(line), _TACTIC.search(line), _OUTPUTS.search(line)
    part, profile = _PART.search(line), _PROFILE.search(line)
    assert head is not None
    metadata = line.rsplit("Metadata: ", 1)[-1]
    return EngineLayer(
        name=head["name"],
        kind=head["kind"],
        tactic=tactic["tactic"] if tactic else "",
        nodes=tuple(_NODE.findall(metadata)),
        outputs=tuple(
            f"{tensor['name']}: {tensor['dtype'].lower()} [{tensor['dims']}]"
            for tensor in _TENSOR.finditer(outputs["outputs"] if outputs else "")
        ),
        profile=int(profile[1]) if profile else profiles.get(part[1], 0) if part else 0,
    )


def as_json(layers: Sequence[EngineLayer]) -> list[dict[str, Any]]:
    """The layers as JSON values."""
    return [asdict(layer) for layer in layers]


def bindings_of(lines: Sequence[str]) -> tuple[str, ...]:
    """The engine's inputs and outputs as it lists them itself: "input past_key_values.0.key: half [-1,2,4096,16]"."""
    return tuple(
        f"{found['mode'].lower()} {found['name']}: {found['dtype'].lower()} [{found['dims']}]"
        for line in lines
        if (found := _BINDING.match(line))
    )


def bindings_of_network(network: tensorrt.INetworkDefinition) -> tuple[str, ...]:
    """Likewise of a network that was built, where the compiler lists nothing."""
    inputs = [("input", network.get_input(index)) for index in range(network.num_inputs)]
    outputs = [("output", network.get_output(index)) for index in range(network.num_outputs)]
    return tuple(
        f"{mode} {tensor.name}: {_DTYPE_NAMES.get(tensor.dtype.name, tensor.dtype.name.lower())} "
        f"[{','.join(map(str, cast('Sequence[int]', tensor.shape)))}]"
        for mode, tensor in (*inputs, *outputs)
    )
