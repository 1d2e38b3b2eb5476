"""The exported graph on ONNX Runtime computes what the checkpoint's torch model computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from hlap_export.checkpoint import load_model
from hlap_export.families import FAMILIES
from tests.export.exports import GOLDEN_PLANS, TinyExport, TinyExports
from tests.tiny import VOCAB_SIZE

# Design §5: ONNX against pruned torch in float32, max |dlogit| over max |logit|.
RELATIVE_LOGIT_ERROR = 1e-4
# float16 rounds to 2**-11 in every operator; measured up to 4e-3 over the families' four layers.
FLOAT16_LOGIT_ERROR = 1e-2

NUM_TOKENS, PADDING = 20, 6  # longer than the sliding window of 7 by far
IDS = torch.randint(1, VOCAB_SIZE, (2, NUM_TOKENS), generator=torch.Generator().manual_seed(3))
MASK = torch.ones_like(IDS)
MASK[1, :PADDING] = 0
POSITIONS = (MASK.cumsum(-1) - 1).clamp(min=0)

Arrays = dict[str, np.ndarray[Any, Any]]


def open_session(exported: TinyExport) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(exported.model_file), options, providers=["CPUExecutionProvider"])


def empty_past(session: onnxruntime.InferenceSession, batch: int) -> Arrays:
    dtypes = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    return {
        tensor.name: np.zeros((batch, tensor.shape[1], 0, tensor.shape[3]), dtypes[tensor.type])
        for tensor in session.get_inputs()
        if tensor.name.startswith("past_key_values.")
    }


def engine_logits(exported: TinyExport, chunks: tuple[int, ...], rows: slice = slice(None)) -> np.ndarray[Any, Any]:
    """Logits [B, T, V] of feeding the tokens chunk by chunk through the cache, which starts empty."""
    session = open_session(exported)
    ids, mask, positions = (tensor[rows].numpy() for tensor in (IDS, MASK, POSITIONS))
    past = empty_past(session, len(ids))
    logits, start = [], 0
    for length in chunks:
        end = start + length
        feeds = {
            "input_ids": ids[:, start:end],
            "attention_mask": mask[:, :end],
            "position_ids": positions[:, start:end],
        }
        names = [tensor.name for tensor in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, feeds | past), strict=True))
        logits.append(outputs.pop("logits"))
        past = {name.replace("present", "past_key_values"): array for name, array in outputs.items()}
        start = end
    assert start == NUM_TOKENS
    return np.concatenate(logits, axis=1)


def torch_logits(exported: TinyExport) -> np.ndarray[Any, Any]:
    """Logits of the whole text in one uncached pass."""
    model = load_model(exported.checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK, position_ids=POSITIONS, use_cache=False).logits.numpy()


def relative_error(
    logits: np.ndarray[Any, Any], reference: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]
) -> float:
    assert np.isfinite(logits).all(), "padding rows must stay finite: NaN would spread to other rows through the cache"
    return float(np.abs(logits - reference)[counts].max() / np.abs(reference[counts]).max())


@pytest.mark.parametrize(
    ("family", "plan"),
    [*((family, plan) for family in FAMILIES for plan in GOLDEN_PLANS), ("llama", "mixed"), ("gemma2", "mixed")],
)
def test_prefill_then_cached_steps_of_a_padded_batch_match_torch(
    family: str, plan: str, tiny_exports: TinyExports
) -> None:
    exported = tiny_exports.get(family, plan)
    # The first chunk is shorter than the padding: the second row has seen nothing but padding by then.
    logits = engine_logits(exported, (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4)))
    assert relative_error(logits, torch_logits(exported), MASK.bool().numpy()) <= RELATIVE_LOGIT_ERROR


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_token_at_a_time_for_a_single_row_matches_one_prefill(family: str, tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get(family, "partial_heads")
    steps = engine_logits(exported, (1,) * NUM_TOKENS, rows=slice(0, 1))
    prefill = engine_logits(exported, (NUM_TOKENS,), rows=slice(0, 1))
    assert relative_error(steps, prefill, np.ones((1, NUM_TOKENS), bool)) <= RELATIVE_LOGIT_ERROR


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_float16_stays_close_to_float32_torch_and_never_overflows(family: str, tiny_exports: TinyExports) -> None:
    exported = tiny_exports.get(family, "mixed", "float16")
    logits = engine_logits(exported, (PADDING - 2, 10, *[1] * (NUM_TOKENS - PADDING - 8)))
    assert logits.dtype == np.float32
    assert relative_error(logits, torch_logits(exported), MASK.bool().numpy()) <= FLOAT16_LOGIT_ERROR
