from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tokenizers
import transformers
from pydantic import ValidationError

from hlap_export.artifacts import read_manifest, write_manifest
from hlap_export.checkpoint import read_layout
from hlap_export.digests import file_sha256
from hlap_export.engines import build
from hlap_export.errors import ArtefactError, CheckFailed, CheckpointError, ExportError, TextError
from hlap_export.export import export
from hlap_export.families import FAMILIES
from hlap_export.prune import prune
from hlap_export.verify import VerifyOptions, VerifyReport, verify
from hlap_export.verify.options import fit_lengths
from hlap_export.verify.tolerances import TOLERANCES, tolerance_for
from tests.memory import leave_memory
from tests.plans import tiny_plan
from tests.tiny import VOCAB_SIZE, save_tiny
from tests.tiny_engines import TinyEngines, altered

OPTIONS = VerifyOptions(windows=3, window_length=20, prompt_lengths=(12, 7), decode_steps=32, threads=1)
NAMES = [f"w{index}" for index in range(VOCAB_SIZE)]


def add_tokenizer(folder: Path) -> None:
    """One token per word: w0, w1, ..."""
    vocabulary = {name: index for index, name in enumerate(NAMES)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def write_text(path: Path, *, words: int = 300) -> Path:
    path.write_text(" ".join(np.random.default_rng(2).choice(NAMES, words)))
    return path


def nudge_one_weight(folder: Path) -> None:
    """Add 1 to a single element of one matrix in the engine's data file."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    used = {name for node in graph.node if node.op_type == "MatMul" for name in node.input}
    tensor = next(tensor for tensor in graph.initializer if tensor.name in used and tensor.external_data)
    offset = int({entry.key: entry.value for entry in tensor.external_data}["offset"])
    weights = np.memmap(folder / "model.onnx.data", dtype=np.float32, mode="r+", offset=offset, shape=(4,))
    weights[1] += 1.0
    weights.flush()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_an_engine_agrees_with_its_checkpoint(tiny_engines: TinyEngines, family: str) -> None:
    engine = tiny_engines.get(family)
    report = verify(engine.folder, engine.checkpoint, options=OPTIONS)
    report.require_passed()
    assert report.passed
    assert report.num_decode_steps == 32
    assert {check.bound for check in report.checks[:5]} == {1e-4}
    assert 0 < max(check.value for check in report.checks[:5]) < 1e-5
    assert report.candidate_digest == read_manifest(engine.folder).digest
    assert report.reference_digest == read_manifest(engine.checkpoint).digest


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_agrees_over_128_decode_steps_and_up_to_its_last_position(family: str, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", family, max_position_embeddings=256)
    prune(dense, tiny_plan("mixed", read_layout(dense)), tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "onnx", flavour="portable")
    build(tmp_path / "onnx", tmp_path / "engine")
    report = verify(tmp_path / "engine", tmp_path / "checkpoint", options=replace(OPTIONS, decode_steps=128))
    report.require_passed()
    assert (report.num_decode_steps, report.context_length) == (128, 256)
    assert {"cached decode logits", "padded decode logits", "long context logits"} <= {
        check.name for check in report.checks
    }


def test_a_single_wrong_weight_fails_and_the_error_says_what_and_where(
    tiny_engines: TinyEngines, tmp_path: Path
) -> None:
    engine = tiny_engines.get()
    wrong = altered(engine.folder, tmp_path / "wrong", nudge_one_weight)
    report = verify(wrong, engine.checkpoint, options=OPTIONS)
    assert not report.passed
    with pytest.raises(
        CheckFailed, match=r"check 'prefill logits': expected at most 0\.0001.*at batch row 0, position"
    ) as error:
        report.require_passed()
    assert error.value.exit_code == 1


def test_another_models_checkpoint_fails_and_the_advice_is_to_pass_the_right_one(tiny_engines: TinyEngines) -> None:
    report = verify(tiny_engines.get().folder, tiny_engines.get("llama", "dense").checkpoint, options=OPTIONS)
    with pytest.raises(CheckFailed, match="pass the one that this engine was exported from"):
        report.require_passed()


def test_an_engine_whose_files_were_changed_is_not_even_measured(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    engine = tiny_engines.get()
    shutil.copytree(engine.folder, tmp_path / "changed")
    nudge_one_weight(tmp_path / "changed")
    with pytest.raises(ArtefactError, match="different bytes"):
        verify(tmp_path / "changed", engine.checkpoint, options=OPTIONS)


def test_a_reference_of_another_vocabulary_is_refused(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", "llama", vocab_size=50)
    with pytest.raises(ArtefactError, match=f"{VOCAB_SIZE} tokens in its vocabulary, found 50"):
        verify(tiny_engines.get().folder, other)


def test_a_reference_that_memory_cannot_hold_gives_the_same_checks_and_the_report_says_so(
    tiny_engines: TinyEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engines.get("gemma2")
    whole = verify(engine.folder, engine.checkpoint, options=OPTIONS)
    leave_memory(monkeypatch, {"cpu": 150_000})
    streamed = verify(engine.folder, engine.checkpoint, options=OPTIONS)
    assert (whole.reference_streamed_layers, streamed.reference_streamed_layers) == (0, 4)
    assert streamed.checks == whole.checks


def test_reference_candidate_and_baseline_are_never_open_together(
    tiny_engines: TinyEngines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["hlap_export.verify.verify"]
    candidate = altered(tiny_engines.get().folder, tmp_path / "candidate", add_tokenizer)
    events: list[str] = []
    open_session = module.open_session
    sequences = sys.modules["hlap_export.verify.sequences"]
    reference_of = sequences.reference_of

    @contextmanager
    def watched(engine: Path, **options: Any) -> Iterator[Any]:
        events.append(f"{engine.name} opens")
        with open_session(engine, **options) as session:
            yield session
        events.append(f"{engine.name} is closed")

    def noted(*arguments: Any, **options: Any) -> Any:
        events.append("reference")
        return reference_of(*arguments, **options)

    monkeypatch.setattr(module, "open_session", watched)
    monkeypatch.setattr(sequences, "reference_of", noted)
    baseline = tiny_engines.get("llama", "dense").folder
    text = write_text(tmp_path / "text.txt")
    verify(candidate, tiny_engines.get().checkpoint, text=text, baseline=baseline, options=OPTIONS)
    names = ("candidate", baseline.name)
    assert events == ["reference", *(f"{name} {event}" for name in names for event in ("opens", "is closed"))]


def test_text_is_used_when_there_is_a_tokenizer(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    engine, dense = tiny_engines.get(), tiny_engines.get("llama", "dense")
    candidate = altered(engine.folder, tmp_path / "candidate", add_tokenizer)
    text = write_text(tmp_path / "text.txt")
    steps: list[tuple[int, int]] = []
    report = verify(
        candidate,
        engine.checkpoint,
        text=text,
        baseline=dense.folder,
        options=OPTIONS,
        on_progress=lambda done, total: steps.append((done, total)),
    )
    assert report.passed
    assert (report.tokens.kind, report.tokens.path, report.tokens.sha256) == ("text", str(text), file_sha256(text))
    assert report.baseline_digest == read_manifest(dense.folder).digest
    perplexity: Any = report.perplexity
    assert (perplexity.num_windows, perplexity.window_length, perplexity.num_scored_tokens) == (3, 20, 57)
    increase = perplexity.candidate.loss_nats_per_token - perplexity.baseline.loss_nats_per_token
    assert perplexity.loss_increase_nats_per_token == pytest.approx(increase)
    assert perplexity.candidate.perplexity == pytest.approx(math.exp(perplexity.candidate.loss_nats_per_token))
    assert steps == [(done, 7) for done in range(1, 8)]
    assert VerifyReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("smaller", ["candidate", "baseline"])
def test_windows_of_the_text_are_cut_to_the_smaller_engines_capacity(
    smaller: str, tiny_engines: TinyEngines, tmp_path: Path
) -> None:
    engine = tiny_engines.get()
    engines = {name: altered(engine.folder, tmp_path / name, add_tokenizer) for name in ("candidate", "baseline")}
    manifest = read_manifest(engines[smaller])
    write_manifest(
        engines[smaller],
        kind="engine",
        parameters=manifest.parameters | {"capacity": 16},
        inputs=manifest.inputs,
        facts=manifest.facts,
    )
    short = replace(OPTIONS, prompt_lengths=(7,), decode_steps=4)
    report = verify(
        engines["candidate"],
        engine.checkpoint,
        text=write_text(tmp_path / "text.txt"),
        baseline=engines["baseline"],
        options=short,
    )
    perplexity: Any = report.perplexity
    assert (perplexity.num_windows, perplexity.window_length, perplexity.num_scored_tokens) == (3, 16, 45)


def test_without_a_tokenizer_the_report_says_that_the_ids_are_random(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    engine = tiny_engines.get()
    candidate = altered(engine.folder, tmp_path / "candidate", remove_tokenizer)
    text = write_text(tmp_path / "text.txt")
    report = verify(candidate, engine.checkpoint, text=text, options=OPTIONS)
    assert (report.tokens.kind, report.tokens.seed) == ("random", 0)
    assert report.tokens.reason == "the engine's folder has no tokenizer"
    assert report.perplexity is None
    again = verify(candidate, engine.checkpoint, text=text, options=OPTIONS)
    assert again.checks == report.checks


def test_a_damaged_tokenizer_is_an_error_and_not_a_reason_for_random_ids(
    tiny_engines: TinyEngines, tmp_path: Path
) -> None:
    def damage(folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")

    engine = tiny_engines.get()
    candidate = altered(engine.folder, tmp_path / "candidate", damage)
    with pytest.raises(CheckpointError, match="expected a tokenizer"):
        verify(candidate, engine.checkpoint, text=write_text(tmp_path / "text.txt"), options=OPTIONS)


def test_a_text_that_is_too_short_is_refused(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    engine = tiny_engines.get()
    candidate = altered(engine.folder, tmp_path / "candidate", add_tokenizer)
    for words in (0, 30, 90):
        with pytest.raises(TextError, match=r"text\.txt"):
            verify(
                candidate,
                engine.checkpoint,
                text=write_text(tmp_path / "text.txt", words=words),
                options=VerifyOptions(windows=5, window_length=20, prompt_lengths=(12, 7), decode_steps=32),
            )


def test_a_half_precision_engine_is_held_to_half_precision_bounds(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get("llama", "dense", "float16")
    report = verify(engine.folder, engine.checkpoint, options=OPTIONS)
    report.require_passed()
    assert report.dtype == "float16"
    assert report.checks[0].bound == TOLERANCES["float16"].logit_error_ratio
    assert report.checks[0].value > TOLERANCES["float32"].logit_error_ratio


def test_an_unknown_dtype_has_no_bounds() -> None:
    with pytest.raises(ExportError, match="float32, float16, bfloat16, int8, int4, found int3"):
        tolerance_for("int3")


def test_a_report_cannot_claim_to_have_passed_with_a_failed_check(tiny_engines: TinyEngines) -> None:
    engine = tiny_engines.get()
    stored = verify(engine.folder, engine.checkpoint, options=OPTIONS).model_dump()
    stored["checks"][0]["passed"] = False
    with pytest.raises(ValidationError, match="passed must say whether every check passed"):
        VerifyReport.model_validate(stored)


LONG = VerifyOptions(prompt_lengths=(12, 7), decode_steps=16, context_length=64, threads=1)


@pytest.mark.parametrize("flavour", ["portable", "ort", "trt"])
def test_a_context_up_to_the_models_last_position_is_checked(tiny_engines: TinyEngines, flavour: str) -> None:
    engine = tiny_engines.get("mistral", "suffix", "float32", flavour)
    report = verify(engine.folder, engine.checkpoint, options=replace(LONG, context_length=None))
    report.require_passed()
    assert (report.context_length, report.context_limit) == (128, 128)
    check = next(check for check in report.checks if check.name == "long context logits")
    assert check.location is not None and 111 <= check.location.position <= 127


def test_lengths_are_cut_to_what_the_engine_has_room_for(tiny_engines: TinyEngines) -> None:
    layout, manifest = read_layout(tiny_engines.get().checkpoint), read_manifest(tiny_engines.get().folder)
    small = manifest.model_copy(update={"parameters": manifest.parameters | {"capacity": 40, "max_batch": 2}})
    lengths = fit_lengths(VerifyOptions(prompt_lengths=(48, 29, 3)), layout, small)
    assert (lengths.prompt_lengths, lengths.decode_steps, lengths.limit) == ((20, 20), 20, 40)
    assert lengths.context_length == 0, "as long as the others"
    free = fit_lengths(VerifyOptions(), layout, manifest)
    assert (free.prompt_lengths, free.decode_steps, free.context_length) == ((48, 29, 3), 80, 0)
    assert fit_lengths(LONG, layout, manifest).context_length == 64


def test_a_checkpoint_that_was_changed_since_is_no_reference(tiny_engines: TinyEngines, tmp_path: Path) -> None:
    """An engine exported from the same wrong weights would agree with them."""
    checkpoint = shutil.copytree(tiny_engines.get().checkpoint, tmp_path / "checkpoint")
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 64
    weights.write_bytes(content)
    with pytest.raises(CheckFailed, match=r"model\.safetensors: .*found changed, other bytes"):
        verify(tiny_engines.get().folder, checkpoint, options=OPTIONS)
