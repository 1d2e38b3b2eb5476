"""What only a GPU can show. `make test-gpu` runs these; elsewhere they are skipped with the reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hlap_export.engines import backends, build, open_session
from hlap_export.engines.trt import TensorRTOptions
from hlap_export.families import FAMILIES
from tests.engines.test_ort_flavour import session_logits
from tests.export.exports import TinyExport, TinyExports
from tests.export.test_parity import (
    FLOAT16_LOGIT_ERROR,
    MASK,
    NUM_TOKENS,
    PADDING,
    RELATIVE_LOGIT_ERROR,
    relative_error,
    torch_logits,
)

pytestmark = pytest.mark.gpu

SMALL = TensorRTOptions(capacity=NUM_TOKENS, max_batch=2, max_prompt=NUM_TOKENS, max_logits=NUM_TOKENS)
PLANS = ("mixed", "suffix", "partial_heads")
# bfloat16 keeps 3 bits less than float16.
BOUNDS = {"float32": RELATIVE_LOGIT_ERROR, "float16": FLOAT16_LOGIT_ERROR, "bfloat16": 8 * FLOAT16_LOGIT_ERROR}
IN_PIECES = (PADDING - 2, 6, *[1] * (NUM_TOKENS - PADDING - 4))


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest) -> str:
    """The engines of NVIDIA's that can build and run here."""
    backend = backends()[request.param]
    if problem := backend.why_unavailable() or backend.why_not_runnable():
        pytest.skip(f"{backend.name}: {problem.found}")
    return backend.name


CASES = [
    *((family, plan, dtype) for family in FAMILIES for plan in PLANS for dtype in ("float32", "float16")),
    *(("llama", plan, "bfloat16") for plan in PLANS),
]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_padded_batch_matches_torch_at_once_and_in_pieces(
    engine: str, case: tuple[str, str, str], tiny_exports: TinyExports, tmp_path: Path
) -> None:
    require_parity(tiny_exports.get(*case, "trt"), tmp_path / "engine", engine, SMALL)


@pytest.mark.parametrize("dtype", BOUNDS)
def test_more_rows_than_the_engine_takes_run_one_after_another(
    engine: str, dtype: str, tiny_exports: TinyExports, tmp_path: Path
) -> None:
    """In half precision their caches begin where no tensor may: 20 slots of 16 numbers are 640 bytes."""
    exported = tiny_exports.get("mistral", "mixed", dtype, "trt")
    require_parity(exported, tmp_path / "engine", engine, replace(SMALL, max_batch=1))


def require_parity(exported: TinyExport, out: Path, engine: str, options: TensorRTOptions) -> None:
    """Two rows, one of them padded, have the logits of torch."""
    build(exported.folder, out, engine=engine, options=options)
    expected, counts = torch_logits(exported), MASK.bool().numpy()
    with open_session(out) as session:
        for pieces in ((NUM_TOKENS,), IN_PIECES):
            assert relative_error(session_logits(session, pieces, None), expected, counts) <= BOUNDS[exported.dtype]


@pytest.mark.parametrize("change", ["two_engines", "strip_weights", "weight_streaming"])
def test_the_way_that_weights_are_kept_changes_no_number(
    engine: str, change: str, tiny_exports: TinyExports, tmp_path: Path
) -> None:
    folder = tiny_exports.get("llama", "mixed", "float16", "trt").folder
    found: list[object] = []
    for name, options in (("plain", SMALL), (change, replace(SMALL, **{change: True}))):
        build(folder, tmp_path / name, engine=engine, options=options)
        with open_session(tmp_path / name) as session:
            found.append(session_logits(session, IN_PIECES, None))
    np.testing.assert_allclose(found[0], found[1], atol=FLOAT16_LOGIT_ERROR * np.abs(found[0]).max())


def test_two_caches_of_one_engine_do_not_write_into_each_other(
    engine: str, tiny_exports: TinyExports, tmp_path: Path
) -> None:
    """A recorded step must not remember the buffers that it was recorded with."""
    build(
        tiny_exports.get("llama", "mixed", "float16", "trt").folder, tmp_path / "engine", engine=engine, options=SMALL
    )
    ids = np.random.default_rng(8).integers(0, 90, (2, 1, 6))
    with open_session(tmp_path / "engine") as session:
        alone = [_steps(session, row) for row in ids]
        caches = [session.empty_cache(1) for _ in ids]
        for at in range(6):
            for index, row in enumerate(ids):
                step = row[:, at : at + 1]
                logits, caches[index] = session.run(step, np.ones((1, at + 1), np.int64), step, caches[index])
                np.testing.assert_array_equal(logits, alone[index][at])


def _steps(session: object, ids: object) -> list[object]:
    cache, found = session.empty_cache(1), []  # type: ignore[attr-defined]
    for at in range(ids.shape[1]):  # type: ignore[attr-defined]
        step = ids[:, at : at + 1]  # type: ignore[index]
        logits, cache = session.run(step, np.ones((1, at + 1), np.int64), step, cache)  # type: ignore[attr-defined]
        found.append(logits)
    return found


def test_a_cache_goes_out_and_in_again_as_arrays(engine: str, tiny_exports: TinyExports, tmp_path: Path) -> None:
    build(
        tiny_exports.get("llama", "mixed", "float16", "trt").folder, tmp_path / "engine", engine=engine, options=SMALL
    )
    ids = np.random.default_rng(4).integers(0, 90, (2, 8))
    with open_session(tmp_path / "engine") as session:
        _, cache = session.run(ids[:, :7], np.ones((2, 7), np.int64), ids[:, :7], session.empty_cache(2))
        arrays = session.read_cache(cache)
        expected, _ = session.run(ids[:, 7:], np.ones((2, 8), np.int64), ids[:, 7:], cache)
        again, _ = session.run(ids[:, 7:], np.ones((2, 8), np.int64), ids[:, 7:], session.load_cache(arrays))
    np.testing.assert_array_equal(again, expected)


def test_the_second_build_finds_its_kernels_timed(
    engine: str, tiny_exports: TinyExports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine != "tensorrt":
        pytest.skip(f"{engine} times nothing to build")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tiny_exports.get("llama", "mixed", "float16", "trt").folder
    build(folder, tmp_path / "first", engine=engine, options=SMALL)
    caches = list((tmp_path / "cache").rglob("*.timing"))
    assert len(caches) == 1
    assert caches[0].stat().st_size > 0
    again = build(folder, tmp_path / "second", engine=engine, options=SMALL)
    assert json.dumps(again.facts["phases"]) == json.dumps(build_phases(tmp_path / "first"))


def build_phases(folder: Path) -> object:
    return json.loads((folder / "manifest.json").read_text())["facts"]["phases"]
