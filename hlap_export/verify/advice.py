"""What a failed verification means in words, and what to try."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hlap_export.verify.report import Fault


def fault_in_words(fault: Fault) -> str:
    """Where the engine goes wrong: "first in layer 5: model.layers.5.mlp.down_proj is off by 3e-02 of its size"."""
    if not fault.is_beyond_bound:
        return f"no part alone is beyond {fault.bound:g}, the worst is {fault.part} with {fault.error_ratio:.1e}"
    size = f"is off by {fault.error_ratio:.1e} of its size (bound {fault.bound:g})"
    if fault.tensor is None:
        return f"first in {fault.part}, which {size}"
    return f"first in {fault.part}, which {size}, its tensor {fault.tensor.name} by {fault.tensor.error_ratio:.1e}"


def advice(passed: set[str], fault: Fault | None) -> str:
    """What to try.

    Args:
        passed: names of the checks that passed.
        fault: where the first failed check goes wrong, if that is known.
    """
    if fault is not None and (found := _advice_of_fault(fault)):
        return found
    if "prefill logits" not in passed:
        return (
            "pass the checkpoint that this engine was exported from as --reference; if it is that one, export and "
            "build again (in float32 if the dtype is a smaller one) and report the model if it still fails"
        )
    if "cached decode logits" not in passed or "chunked prefill logits" not in passed:
        return "prefill is right, so the cache is at fault: export again, and report the model if it still fails"
    if "padded prefill logits" not in passed or "padded decode logits" not in passed:
        return "single rows are right, so padding is at fault: run it without padding, and report the model"
    if "long context logits" not in passed:
        return (
            "short rows are right, so long contexts are at fault: don't run it on sequences that long, and report the "
            "model"
        )
    return "logits are within bounds, so the loss is biased or near-ties flip: export in a larger dtype"


def _advice_of_fault(fault: Fault) -> str | None:
    """What the faulty part suggests."""
    if fault.num_beyond_bound > len(fault.parts) // 2:
        return (
            f"{fault.num_beyond_bound} of {len(fault.parts)} parts differ, so the checkpoint is probably another one: "
            "pass the one that this engine was exported from as --reference"
        )
    if not fault.is_beyond_bound:
        return "small errors of all layers add up: export in a larger dtype, int4 and int8 with a smaller block size"
    tensor = fault.tensor.name if fault.tensor else fault.part
    again = "export and build again; if it stays, try --flavour portable in float32, and report the model"
    if tensor.endswith(".self_attn"):
        return f"what attention reads is right, so cache, mask or rotation of {fault.part} are wrong: {again}"
    return f"what {fault.part} reads is right, so the weights or the operator of {tensor} are wrong: {again}"
