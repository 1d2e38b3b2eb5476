"""Verify an engine: parity with its checkpoint in torch, and perplexity against the dense engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hlap_export.artifacts import Manifest, folder_digest, machine_facts, package_versions, read_manifest
from hlap_export.checkpoint import read_layout
from hlap_export.digests import file_sha256
from hlap_export.engines import open_session, require_intact
from hlap_export.errors import ArtefactError
from hlap_export.on_progress import OnProgress, Steps, ignore_progress
from hlap_export.texts import TokenText, has_tokenizer, read_tokens, require_window_length, spread_windows
from hlap_export.verify.parity import Parity, Row, check_parity, cut_rows
from hlap_export.verify.perplexity import compare_losses, window_losses
from hlap_export.verify.reference import reference_of
from hlap_export.verify.report import Perplexity, TokenSource, VerifyReport
from hlap_export.verify.tolerances import tolerance_for

Ids = NDArray[np.int64]
Losses = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyOptions:
    """How much is checked.

    Attributes:
        windows: evaluation windows, spread evenly over the text.
        window_length: tokens in each.
        prompt_lengths: real tokens in each row of the left-padded batch; the first row is also run alone.
        decode_steps: teacher-forced steps through the cache after the prompt.
        threads: CPU threads of the engines; None takes every usable core.
        seed: of the random ids, where there is no text or no tokenizer.
        tokenizer: folder whose tokenizer reads the text; None takes the engine's own.
        trust_remote_code: whether a tokenizer class that this folder brings along may be executed.
        max_memory: most bytes of RAM for the whole process while the reference is computed; its layers that don't fit
            are loaded one at a time. None for what the machine has free.
    """

    windows: int = 32
    window_length: int = 256
    prompt_lengths: tuple[int, int] = (48, 29)
    decode_steps: int = 32
    threads: int | None = None
    seed: int = 0
    tokenizer: Path | None = None
    trust_remote_code: bool = False
    max_memory: int | None = None

    @property
    def parity_tokens(self) -> int:
        """Tokens that the parity rows take from the start of the text."""
        return sum(self.prompt_lengths) + len(self.prompt_lengths) * self.decode_steps


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
        reference: checkpoint folder, computed in float32 torch.
        text: evaluation text. Without it, or without a tokenizer in the engine's folder, parity uses random ids and
            there is no perplexity; the report says so.
        baseline: engine folder of the dense model, for its perplexity on the same windows.
        options: how much is checked; None for the defaults.
        on_progress: called with (steps done, steps in all).

    Raises:
        ArtefactError: not an engine, damaged, or of another vocabulary than the reference.
        CheckpointError, BudgetError: the reference can't be loaded.
        TextError: the text is unreadable or too short.
    """
    started = time.perf_counter()
    options = options or VerifyOptions()
    manifest = require_intact(candidate)
    baseline_digest = require_intact(baseline).digest if baseline else None
    vocab_size = _shared_vocabulary(manifest, reference)
    tokens = _read_text(candidate, text, vocab_size, options)
    windows = None if tokens is None else _windows(tokens, reference, options)
    steps = Steps(1 + (0 if windows is None else len(windows) * (2 if baseline else 1)), on_progress)
    rows, num_streamed_layers = _rows(tokens, reference, vocab_size, options)
    outcome = _run_engines(candidate, baseline, rows, windows, options, steps)
    return VerifyReport(
        candidate=str(candidate),
        candidate_digest=manifest.digest,
        reference=str(reference),
        reference_digest=folder_digest(reference),
        reference_streamed_layers=num_streamed_layers,
        baseline=str(baseline) if baseline else None,
        baseline_digest=baseline_digest,
        engine=str(manifest.parameters["engine"]),
        provider=outcome.provider,
        dtype=outcome.dtype,
        threads=outcome.threads,
        tokens=_token_source(text, tokens, options.seed),
        prompt_lengths=options.prompt_lengths,
        num_decode_steps=options.decode_steps,
        checks=outcome.parity.checks,
        greedy=outcome.parity.greedy,
        perplexity=outcome.perplexity,
        passed=all(check.passed for check in outcome.parity.checks),
        seconds=round(time.perf_counter() - started, 3),
        machine=machine_facts(),
        versions=package_versions(),
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


def _rows(
    tokens: TokenText | None, reference: Path, vocab_size: int, options: VerifyOptions
) -> tuple[tuple[Row, ...], int]:
    """The parity rows with the reference's logits, and how many of its layers were loaded one at a time."""
    ids = _random_ids(vocab_size, options) if tokens is None else tokens.ids
    cut = cut_rows(ids, options.prompt_lengths, options.decode_steps)
    expected = reference_of(reference, cut, max_memory=options.max_memory)
    rows = tuple(
        Row(ids=row, prompt_length=prompt_length, expected=logits)
        for row, prompt_length, logits in zip(cut, options.prompt_lengths, expected.logits, strict=True)
    )
    return rows, expected.num_streamed_layers


def _random_ids(vocab_size: int, options: VerifyOptions) -> Ids:
    return np.random.default_rng(options.seed).integers(0, vocab_size, options.parity_tokens, dtype=np.int64)


def _windows(tokens: TokenText, reference: Path, options: VerifyOptions) -> Ids:
    require_window_length(options.window_length, read_layout(reference).max_positions)
    return spread_windows(tokens, windows=options.windows, window_length=options.window_length)


def _read_text(candidate: Path, text: Path | None, vocab_size: int, options: VerifyOptions) -> TokenText | None:
    folder = options.tokenizer or candidate
    if text is None or not has_tokenizer(folder):
        return None
    tokens = read_tokens(folder, text, vocab_size=vocab_size, trust_remote_code=options.trust_remote_code)
    # One "window" of all parity tokens: raises where the text is too short for them.
    spread_windows(tokens, windows=1, window_length=options.parity_tokens)
    return tokens


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
    rows: Sequence[Row],
    windows: Ids | None,
    options: VerifyOptions,
    steps: Steps,
) -> _Outcome:
    """Parity and losses of the candidate, then losses of the baseline."""
    dtype = read_manifest(candidate).parameters.get("dtype")
    with open_session(candidate, threads=options.threads) as session:
        provider, threads, dtype = session.provider, session.threads, str(dtype or session.dtype)
        parity = check_parity(session, rows, tolerance_for(dtype))
        steps.advance()
        losses = None if windows is None else window_losses(session, windows, on_window=steps.advance)
    perplexity = None
    if windows is not None and losses is not None:
        dense = None if baseline is None else _losses(baseline, windows, options, steps)
        perplexity = compare_losses(losses, dense, window_length=options.window_length)
    return _Outcome(provider=provider, dtype=dtype, threads=threads, parity=parity, perplexity=perplexity)


def _losses(engine: Path, windows: Ids, options: VerifyOptions, steps: Steps) -> Losses:
    with open_session(engine, threads=options.threads) as session:
        return window_losses(session, windows, on_window=steps.advance)
