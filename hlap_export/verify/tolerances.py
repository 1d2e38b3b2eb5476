"""Every bound that decides whether an engine is right, by its dtype, each with its reason.

The reference is always the checkpoint in float32 torch. A bound is never loosened to make a check pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.errors import ExportError


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """What an engine of one dtype may differ by.

    Attributes:
        logit_error_ratio: largest max|Δlogit| / max|logit|.
        loss_difference_nats: largest |Δ mean loss| on the parity tokens; errors of both signs average out, so this is
            much tighter than the logit bound and catches a small bias that every logit shares.
        kl_nats: largest mean KL divergence of the engine's distribution from the reference's, in nats per token: what
            sampling notices. For small errors it is half the variance of Δlogit under the reference's distribution.
        greedy_agreement: smallest fraction of positions whose most likely token is the reference's. Only near-ties may
            flip: about the logit error divided by the typical gap between the two best logits.
        layer_error_ratio: largest |Δ| / |residual stream| that a layer adds for any token, from the engine's own input.
            It decides nothing but where a failed check is said to go wrong; some four times what was measured on the
            reference model, 1e-6 in float32, 1.5e-3 in float16, 1.7e-2 in int8 and 0.12 in int4.
        tensor_error_ratio: the same for a tensor inside of a layer, to which the residual stream adds nothing.
    """

    logit_error_ratio: float
    loss_difference_nats: float
    kl_nats: float
    greedy_agreement: float
    layer_error_ratio: float
    tensor_error_ratio: float


TOLERANCES = {
    # Summation order alone: 2^-24 per operation, a few thousand operations deep, measured 2e-7 to 2e-6.
    "float32": Tolerance(
        logit_error_ratio=1e-4,
        loss_difference_nats=1e-4,
        kl_nats=1e-6,
        greedy_agreement=0.99,
        layer_error_ratio=1e-5,
        tensor_error_ratio=1e-4,
    ),
    # Weights and activations are rounded at 2^-11 = 4.9e-4; some 20 roundings add up along the residual stream. KL
    # grows with the error's square: measured 5e-6.
    "float16": Tolerance(
        logit_error_ratio=1e-2,
        loss_difference_nats=1e-2,
        kl_nats=1e-4,
        greedy_agreement=0.97,
        layer_error_ratio=5e-3,
        tensor_error_ratio=2e-2,
    ),
    # The same with 8 bits of mantissa: 2^-8 = 3.9e-3 a rounding, eight times float16's error, so 64 times its KL.
    "bfloat16": Tolerance(
        logit_error_ratio=8e-2,
        loss_difference_nats=8e-2,
        kl_nats=5e-3,
        greedy_agreement=0.85,
        layer_error_ratio=4e-2,
        tensor_error_ratio=0.15,
    ),
    # Weights are rounded to 1/255 of a block's range, activations to 1/127 of it: a product is off by 0.7% of its size.
    # Measured on the reference model, on text and on random tokens: 2.8e-2, 2e-3, KL 8e-4 and 0.97.
    "int8": Tolerance(
        logit_error_ratio=5e-2,
        loss_difference_nats=2e-2,
        kl_nats=5e-3,
        greedy_agreement=0.90,
        layer_error_ratio=5e-2,
        tensor_error_ratio=0.15,
    ),
    # Weights are rounded to 1/15 of a block's range, and a product is off by 8% of its size. Measured on the reference
    # model: 0.27, 0.11, KL 0.06 and 0.82 in blocks of 32; 0.24, 0.05 and 0.81 in blocks of 128. These bounds tell a
    # wrong engine from a right one (one matrix of 61 with its low and high bits swapped has 0.30, 0.25 and 0.70); how
    # good a right one is, perplexity tells.
    "int4": Tolerance(
        logit_error_ratio=0.4,
        loss_difference_nats=0.2,
        kl_nats=0.2,
        greedy_agreement=0.75,
        layer_error_ratio=0.3,
        tensor_error_ratio=0.5,
    ),
}


def tolerance_for(dtype: str) -> Tolerance:
    """The bounds for an engine that computes in `dtype`.

    Raises:
        ExportError: no bounds are known for it.
    """
    if dtype not in TOLERANCES:
        raise ExportError(
            where="the engine's dtype",
            expected=f"one with known bounds: {', '.join(TOLERANCES)}",
            found=dtype,
            fix="export and build with one of these",
        )
    return TOLERANCES[dtype]
