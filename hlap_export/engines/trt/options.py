"""What a TensorRT engine is built for: sizes that it must know beforehand, and how much the compiler may do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from hlap_export.errors import ArtefactError

DEFAULT_CAPACITY = 4096
DEFAULT_MAX_PROMPT = 1024
DEFAULT_TYPICAL_PROMPT = 256
DEFAULT_MAX_LOGITS = 64

Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorRTOptions:
    """One request to the compiler.

    Attributes:
        capacity: tokens that each row's KV cache holds; None takes the model's positions, at most 4096.
        max_batch: most rows of one call.
        typical_batch: rows that kernels are chosen for.
        max_prompt: most new tokens of one call; longer prompts run in pieces. None takes 1024, at most the capacity.
        typical_prompt: new tokens that the prefill's kernels are chosen for; None takes 256, at most `max_prompt`.
        max_logits: most tokens of one call that have logits; only generation needs no more than 1. None takes 64.
        two_engines: prefill and decode as an engine each, in place of one engine with two profiles. One stores and
            loads the weights once; two leave the compiler freer, at twice the memory.
        workspace_bytes: scratch memory that kernels may ask for; None for what the GPU has.
        optimisation_level: 0 (fast to build) to 5 (fast to run).
        tf32: whether float32 products may be rounded to 10 bits of mantissa.
        strip_weights: leave the weights out of the plan; they are read from the ONNX beside it when it is loaded.
        weight_streaming: let weights that don't fit on the GPU be streamed from memory.
        version_compatible: let later versions of the library run the plan.
        compatibility: which other GPUs than the building one may run it (tensorrt).
        compute_capabilities: GPUs that it is built for, such as "SM89" (tensorrt-rtx); none for all that it can.
    """

    capacity: int | None = None
    max_batch: int = 4
    typical_batch: int = 1
    max_prompt: int | None = None
    typical_prompt: int | None = None
    max_logits: int | None = None
    two_engines: bool = False
    workspace_bytes: int | None = None
    optimisation_level: int = 3
    tf32: bool = False
    strip_weights: bool = False
    weight_streaming: bool = False
    version_compatible: bool = False
    compatibility: Compatibility = "none"
    compute_capabilities: tuple[str, ...] = ()

    def parameters(self) -> dict[str, Any]:
        """As JSON values; what is off isn't listed."""
        values = asdict(self) | {"compute_capabilities": list(self.compute_capabilities)}
        # Level 0 is a level: 0 and False are equal.
        return {name: value for name, value in values.items() if value is not False and value not in (None, [], "none")}


OPTION_NAMES = tuple(field.name for field in fields(TensorRTOptions))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The sizes of an engine, every one of them a number."""

    capacity: int
    max_batch: int
    typical_batch: int
    max_prompt: int
    typical_prompt: int
    max_logits: int


def resolved(options: TensorRTOptions, *, max_positions: int) -> TensorRTOptions:
    """The options with each None of a size replaced by its default for a model of so many positions.

    Raises:
        ArtefactError: sizes that contradict each other or the model.
    """
    capacity = options.capacity or min(max_positions, DEFAULT_CAPACITY)
    max_prompt = options.max_prompt or min(capacity, DEFAULT_MAX_PROMPT)
    typical_prompt = options.typical_prompt or min(max_prompt, DEFAULT_TYPICAL_PROMPT)
    max_logits = options.max_logits or min(max_prompt, DEFAULT_MAX_LOGITS)
    for name, value, limit, limits_name in (
        ("capacity", capacity, max_positions, "the positions that the model has"),
        ("max_prompt", max_prompt, capacity, "the capacity"),
        ("typical_prompt", typical_prompt, max_prompt, "max_prompt"),
        ("max_logits", max_logits, max_prompt, "max_prompt"),
        ("typical_batch", options.typical_batch, options.max_batch, "max_batch"),
    ):
        if not 1 <= value <= limit:
            raise ArtefactError(
                where=f"TensorRT option {name}",
                expected=f"between 1 and {limit}, {limits_name}",
                found=str(value),
                fix=f"correct {name} in the recipe's section `tensorrt`, or leave it out for its default",
            )
    return replace(
        options, capacity=capacity, max_prompt=max_prompt, typical_prompt=typical_prompt, max_logits=max_logits
    )


def sizes_of(options: TensorRTOptions) -> Sizes:
    """The sizes of resolved options."""
    assert options.capacity and options.max_prompt and options.typical_prompt and options.max_logits
    return Sizes(
        capacity=options.capacity,
        max_batch=options.max_batch,
        typical_batch=options.typical_batch,
        max_prompt=options.max_prompt,
        typical_prompt=options.typical_prompt,
        max_logits=options.max_logits,
    )
