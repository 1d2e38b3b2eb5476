"""The contenders do the same work: their steps give PyTorch's logits, from the same tokens and the same cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.ort.contenders import ForeignGraph, OurEngine, TorchModel
from benchmarks.ort.limits import Phase
from hlap_export.checkpoint import read_layout
from hlap_export.engines import open_session
from tests.tiny_engines import TinyEngines

LENGTH = 17


def last_logits(output: Any) -> Any:
    """The last token's logits [V] in what a step returns: logits, or logits and a cache."""
    return np.asarray(output[0] if isinstance(output, tuple) else output)[0, -1]


@pytest.mark.parametrize("flavour", ["portable", "ort"])
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_all_contenders_compute_the_same_step(tiny_engines: TinyEngines, flavour: str, phase: Phase) -> None:
    engine = tiny_engines.get("llama", "dense", flavour=flavour)
    layout = read_layout(engine.checkpoint)
    torch_model = TorchModel(engine.checkpoint, layout, threads=1)
    expected = last_logits(torch_model.step(phase, LENGTH)())
    with open_session(engine.folder, threads=1) as session:
        for contender in (
            OurEngine(session),
            OurEngine(session, all_logits=True),
            ForeignGraph(engine.export / "model.onnx", layout, threads=1),
            torch_model,
        ):
            step = contender.step(phase, LENGTH)
            for _ in range(2):  # a step must be repeatable
                np.testing.assert_allclose(last_logits(step()), expected, atol=1e-4 * np.abs(expected).max())


def test_only_the_prefill_of_all_logits_returns_them_all(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get("llama", "dense", flavour="ort")
    with open_session(engine.folder, threads=1) as session:
        shapes = [OurEngine(session, all_logits=asked).step("prefill", LENGTH)()[0].shape for asked in (True, False)]
    assert shapes == [(1, LENGTH, session.vocab_size), (1, 1, session.vocab_size)]
