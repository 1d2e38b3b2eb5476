"""Try a bundle with the real onnxruntime-genai: does it read text as the model does, and compute the same logits?"""

from __future__ import annotations

import gc
import importlib
import importlib.util
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hlap_export.checkpoint import load_tokenizer
from hlap_export.engines import open_session
from hlap_export.engines.base import Floats, Ints
from hlap_export.errors import BundleError

PACKAGE = "onnxruntime-genai"
PROBE = 'Hello, world! It cost 1,234.5 euros.\n\ndef naïve(x):\n    """Return it."""\n    return x[:-1] + 2\n'
DECODE_STEPS = 4

# The same graph, run by the same kernels: beyond the rounding of another thread count there is no difference, while a
# wrong position, mask or cache changes logits by their own size.
LOGIT_BOUND = 1e-2


def why_not_tried(provider: str) -> str | None:
    """Why onnxruntime-genai can't be run here with an execution provider; None if it can."""
    if importlib.util.find_spec("onnxruntime_genai") is None:
        return f"{PACKAGE} isn't installed"
    try:
        genai = _genai()
    except ImportError as error:
        return f"{PACKAGE} fails to import: {error}"
    if provider.startswith("CUDA") and not genai.is_cuda_available():
        return f"this {PACKAGE} can't use a GPU here"
    return None


def try_out(bundle: Path, engine_dir: Path) -> str:
    """Load the bundle, tokenise, prefill and decode with it, and compare with the tokenizer and the engine themselves.

    Returns:
        What it was tried with.

    Raises:
        BundleError: it doesn't load, reads text as other tokens, or computes other logits.
    """
    ids = np.array(cast(Any, load_tokenizer(bundle))(PROBE)["input_ids"], dtype=np.int64)
    expected = _engine_logits(engine_dir, ids)
    try:
        read, found = _genai_tokens_and_logits(bundle, ids)
    except RuntimeError as error:  # all that its bindings raise
        raise _refused(expected="a folder that it loads and runs", found=" ".join(str(error).split())[:300]) from error
    finally:
        gc.collect()  # its model holds a second copy of the weights until Python forgets it
    if read != ids.tolist():
        at = next((at for at, (a, b) in enumerate(zip(read, ids.tolist(), strict=False)) if a != b), len(read))
        raise _refused(
            expected=f"the tokens of transformers for {PROBE!r}: {ids[at : at + 4].tolist()} from token {at} on",
            found=str(read[at : at + 4]),
        )
    error = float(np.abs(found - expected).max() / np.abs(expected).max())
    if not error <= LOGIT_BOUND:
        raise _refused(
            expected=f"the engine's own logits, to {LOGIT_BOUND:g} of the largest one", found=f"an error of {error:.2g}"
        )
    return f"{PACKAGE} {_genai().__version__}"


def _engine_logits(engine_dir: Path, ids: Ints) -> Floats:
    """Logits [1 + DECODE_STEPS, V] of the last tokens: after all but the last ones, then after each of those."""
    logits: list[NDArray[np.float32]] = []
    with open_session(engine_dir) as session:
        cache = session.empty_cache(1, ids.size)
        for start, stop in _steps(ids.size):
            step_1TV, cache = session.run(
                ids[None, start:stop],
                np.ones((1, stop), np.int64),
                np.arange(start, stop)[None],
                cache,
                last_only=True,
            )
            logits.append(step_1TV[0, -1])
    return np.stack(logits)


def _genai_tokens_and_logits(folder: Path, ids: Ints) -> tuple[list[int], Floats]:
    """The probe's tokens as genai reads it, and its logits for the tokens `ids`, as `_engine_logits` orders them."""
    genai = _genai()
    model = genai.Model(str(folder))
    read = [int(token) for token in genai.Tokenizer(model).encode(PROBE)]
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=int(ids.size) + 1)
    generator = genai.Generator(model, params)
    logits: list[NDArray[np.float32]] = []
    for start, stop in _steps(ids.size):
        generator.append_tokens(ids[start:stop].astype(np.int32))
        logits.append(np.array(generator.get_logits(), dtype=np.float32).reshape(-1))
    return read, np.stack(logits)


def _steps(length: int) -> list[tuple[int, int]]:
    prefill = length - DECODE_STEPS
    return [(0, prefill), *((at, at + 1) for at in range(prefill, length))]


def _refused(*, expected: str, found: str) -> BundleError:
    return BundleError(
        where=f"the bundle, tried with {PACKAGE} {_genai().__version__}",
        expected=expected,
        found=found,
        fix="this version can't serve the model as it is: run the engine with onnxruntime, or try another version",
    )


def _genai() -> Any:
    return importlib.import_module("onnxruntime_genai")
