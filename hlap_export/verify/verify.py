"""Verify an engine: parity with its checkpoint in torch, and perplexity against the dense engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hlap_export.artifacts import MANIFEST, Manifest, machine_facts, package_versions, read_manifest
from hlap_export.checkpoint import read_layout
from hlap_export.checkpoint.digest import model_digest
from hlap_export.digests import file_sha256
from hlap_export.engines import open_session, require_intact
from hlap_export.errors import ArtefactError
from hlap_export.integrity import verify_manifest
from hlap_export.on_progress import OnProgress, Steps, ignore_progress
from hlap_export.texts import TokenText, has_tokenizer, read_tokens, require_window_length, spread_windows
from hlap_export.verify.fault import find_fault
from hlap_export.verify.folds import check_folds, fold_checks
from hlap_export.verify.options import Lengths, VerifyOptions, fit_lengths
from hlap_export.verify.parity import DECODE, Parity, check_parity
from hlap_export.verify.perplexity import compare_losses, window_losses
from hlap_export.verify.report import Fault, Folds, Perplexity, TokenSource, VerifyReport
from hlap_export.verify.sequences import Sequences, random_ids, sequences_of
from hlap_export.verify.tolerances import tolerance_for

Ids = NDArray[np.int64]
Losses = NDArray[np.float64]


def verify(
    candidate: Path,
    reference: Path,
    *,
    text: Path | None = None,
    baseline: Path | None = None,
    options: VerifyOptions | None = None,
    on_progress: OnProgress = ignore_progress,
) -> VerifyReport:
    """Compare an engine with its checkpoint, and measure its perplexity; `report.require_passed()` raises on failure.

    Reference, candidate and baseline are never in memory together.

    Args:
        candidate: engine folder.
        reference: checkpoint folder, for float32 torch.
        text: for evaluation, in windows that are cut to the engines' capacity. Without it, or without a tokenizer in
            the engine's folder, ids are random, which is told.
        baseline: engine folder of the dense model, for its perplexity on the same windows.
        options: how much is checked; None for the defaults.
        on_progress: called with (steps done, steps in all).

    Raises:
        ArtefactError: not an engine, damaged, or of another vocabulary than the reference.
        CheckFailed: the reference isn't what it was when it was written.
        CheckpointError, BudgetError: the reference can't be loaded.
        TextError: the text is unreadable or too short.
    """
    started = time.perf_counter()
    manifest = require_intact(candidate)
    dense = require_intact(baseline) if baseline else None
    options = _fitting_windows(options or VerifyOptions(), manifest, dense)
    material = _prepare(manifest, candidate, reference, text, options)
    steps = Steps(1 + material.num_windows * (2 if baseline else 1), on_progress)
    outcome = _run_engines(candidate, baseline, material, options, steps)
    return VerifyReport(
        candidate=str(candidate),
        candidate_digest=manifest.digest,
        reference=str(reference),
        reference_digest=model_digest(reference),
        reference_streamed_layers=material.sequences.num_streamed_layers,
        baseline=str(baseline) if baseline else None,
        baseline_digest=dense.digest if dense else None,
        engine=str(manifest.parameters["engine"]),
        provider=outcome.provider,
        dtype=outcome.dtype,
        threads=outcome.threads,
        tokens=_token_source(text, material.tokens, options.seed),
        **material.lengths.as_fields(),
        checks=(checks := (*outcome.parity.checks, *fold_checks(material.folds))),
        agreement=outcome.parity.agreement,
        greedy=outcome.parity.greedy,
        fault=_fault(candidate, reference, outcome, material.sequences, options),
        perplexity=outcome.perplexity,
        folds=material.folds,
        passed=all(check.passed for check in checks),
        seconds=round(time.perf_counter() - started, 3),
        machine=machine_facts(),
        versions=package_versions(),
    )


def _fitting_windows(options: VerifyOptions, *engines: Manifest | None) -> VerifyOptions:
    """The options with windows of the text that fit into every engine's cache, where that has a fixed capacity."""
    asked = options.window_length
    rooms = [int(engine.parameters.get("capacity", asked)) for engine in engines if engine]
    return replace(options, window_length=min(asked, *rooms))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Material:
    """What the engines are run on.

    Attributes:
        lengths: of the sequences.
        tokens: of the text; None where ids are random.
        windows: of the text, for the perplexity.
        sequences: with the reference's logits.
        folds: the reference's folded layers against the dense checkpoint, where there is one.
    """

    lengths: Lengths
    tokens: TokenText | None
    windows: Ids | None
    sequences: Sequences
    folds: Folds | None

    @property
    def num_windows(self) -> int:
        return 0 if self.windows is None else len(self.windows)


def _prepare(
    manifest: Manifest, candidate: Path, reference: Path, text: Path | None, options: VerifyOptions
) -> _Material:
    """Read the text, and let the reference compute what the engine will be compared with."""
    if (reference / MANIFEST).is_file():  # a model from elsewhere has none
        verify_manifest(reference).require_intact()
    vocab_size = _shared_vocabulary(manifest, reference)
    tokens = _read_text(candidate, text, vocab_size, options)
    windows = None if tokens is None else _windows(tokens, reference, options)
    lengths = fit_lengths(options, read_layout(reference), manifest)
    if tokens is not None:  # one "window" of all parity tokens: raises where the text is too short for them
        spread_windows(tokens, windows=1, window_length=lengths.parity_tokens)
    ids = random_ids(vocab_size, lengths, options.seed) if tokens is None else tokens.ids
    return _Material(
        lengths=lengths,
        tokens=tokens,
        windows=windows,
        sequences=sequences_of(ids, reference, lengths, options),
        folds=options.dense and check_folds(reference, options.dense, ids, max_memory=options.max_memory),
    )


def _shared_vocabulary(manifest: Manifest, reference: Path) -> int:
    """The size of the vocabulary, which engine and reference have in common.

    Raises:
        ArtefactError: they haven't.
    """
    engines, references = int(manifest.facts["vocab_size"]), read_layout(reference).vocab_size
    if engines != references:
        raise ArtefactError(
            where=str(reference),
            expected=f"the checkpoint that the engine was made from, with {engines} tokens in its vocabulary",
            found=f"{references}",
            fix="pass that checkpoint as --reference",
        )
    return engines


def _windows(tokens: TokenText, reference: Path, options: VerifyOptions) -> Ids:
    require_window_length(options.window_length, read_layout(reference).max_positions)
    return spread_windows(tokens, windows=options.windows, window_length=options.window_length)


def _read_text(candidate: Path, text: Path | None, vocab_size: int, options: VerifyOptions) -> TokenText | None:
    folder = options.tokenizer or candidate
    if text is None or not has_tokenizer(folder):
        return None
    return read_tokens(folder, text, vocab_size=vocab_size, trust_remote_code=options.trust_remote_code)


def _token_source(text: Path | None, tokens: TokenText | None, seed: int) -> TokenSource:
    if tokens is not None:
        return TokenSource(kind="text", path=str(tokens.path), sha256=tokens.sha256, seed=None, reason=None)
    reason = "no text was given" if text is None else "the engine's folder has no tokenizer"
    digest = file_sha256(text) if text is not None and text.is_file() else None
    return TokenSource(kind="random", path=str(text) if text else None, sha256=digest, seed=seed, reason=reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Outcome:
    """What the engines did, and on what."""

    provider: str
    dtype: str
    threads: int
    parity: Parity
    perplexity: Perplexity | None


def _run_engines(
    candidate: Path,
    baseline: Path | None,
    material: _Material,
    options: VerifyOptions,
    steps: Steps,
) -> _Outcome:
    """Parity and losses of the candidate, then losses of the baseline."""
    windows, sequences = material.windows, material.sequences
    dtype = read_manifest(candidate).parameters.get("dtype")
    with open_session(candidate, threads=options.threads) as session:
        provider, threads, dtype = session.provider, session.threads, str(dtype or session.dtype)
        parity = check_parity(session, sequences.rows, tolerance_for(dtype), context=sequences.context)
        steps.advance()
        losses = None if windows is None else window_losses(session, windows, on_window=steps.advance)
    perplexity = None
    if windows is not None and losses is not None:
        dense = None if baseline is None else _losses(baseline, windows, options, steps)
        perplexity = compare_losses(losses, dense, window_length=options.window_length)
    return _Outcome(provider=provider, dtype=dtype, threads=threads, parity=parity, perplexity=perplexity)


def _fault(
    candidate: Path, reference: Path, outcome: _Outcome, sequences: Sequences, options: VerifyOptions
) -> Fault | None:
    """Where the first failed check goes wrong; with `bisect` what every part's error is, though none failed."""
    failed = [check for check in outcome.parity.checks if not check.passed]
    if not failed and not options.bisect:
        return None
    check = failed[0] if failed else next(check for check in outcome.parity.checks if check.name == DECODE)
    rows = sequences.of_check(check.name)
    return find_fault(candidate, reference, check, rows, tolerance_for(outcome.dtype), options)


def _losses(engine: Path, windows: Ids, options: VerifyOptions, steps: Steps) -> Losses:
    with open_session(engine, threads=options.threads) as session:
        return window_losses(session, windows, on_window=steps.advance)
