"""Verify an engine: parity with its checkpoint in torch, and perplexity against the dense engine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from hlap_export.artifacts import folder_digest, machine_facts, package_versions
from hlap_export.checkpoint import load_model
from hlap_export.digests import file_sha256
from hlap_export.engines import Session, open_session, require_intact
from hlap_export.errors import ArtefactError
from hlap_export.on_progress import OnProgress, Steps, ignore_progress
from hlap_export.texts import TokenText, has_tokenizer, read_tokens, spread_windows
from hlap_export.verify.parity import Parity, Reference, check_parity, make_rows
from hlap_export.verify.perplexity import compare_losses, window_losses
from hlap_export.verify.report import Perplexity, TokenSource, VerifyReport
from hlap_export.verify.tolerances import tolerance_for

Ids = NDArray[np.int64]


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
    """

    windows: int = 32
    window_length: int = 256
    prompt_lengths: tuple[int, int] = (48, 29)
    decode_steps: int = 32
    threads: int | None = None
    seed: int = 0
    tokenizer: Path | None = None
    trust_remote_code: bool = False

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

    Args:
        candidate: engine folder.
        reference: checkpoint folder, loaded in float32 torch.
        text: evaluation text. Without it, or without a tokenizer in the engine's folder, parity uses random ids and
            there is no perplexity; the report says so.
        baseline: engine folder of the dense model, for its perplexity on the same windows.
        options: how much is checked; None for the defaults.
        on_progress: called with (steps done, steps in all).

    Raises:
        ArtefactError: not an engine, damaged, or of another vocabulary than the reference.
        CheckpointError: the reference can't be loaded.
        TextError: the text is unreadable or too short.
    """
    started = time.perf_counter()
    options = options or VerifyOptions()
    manifest = require_intact(candidate)
    baseline_digest = require_intact(baseline).digest if baseline else None
    with open_session(candidate, threads=options.threads) as session:
        tokens = _read_text(candidate, text, session.vocab_size, options)
        num_engines = 2 if baseline else 1
        steps = Steps(1 + (num_engines * options.windows if tokens else 0), on_progress)
        dtype = str(manifest.parameters.get("dtype", session.dtype))
        parity = _parity(session, reference, tokens.ids if tokens else None, dtype, options)
        steps.advance()
        perplexity = _perplexity(session, baseline, tokens, options, steps) if tokens else None
        return VerifyReport(
            candidate=str(candidate),
            candidate_digest=manifest.digest,
            reference=str(reference),
            reference_digest=folder_digest(reference),
            baseline=str(baseline) if baseline else None,
            baseline_digest=baseline_digest,
            engine=str(manifest.parameters["engine"]),
            provider=session.provider,
            dtype=dtype,
            threads=session.threads,
            tokens=_token_source(text, tokens, options.seed),
            prompt_lengths=options.prompt_lengths,
            num_decode_steps=options.decode_steps,
            checks=parity.checks,
            greedy=parity.greedy,
            perplexity=perplexity,
            passed=all(check.passed for check in parity.checks),
            seconds=round(time.perf_counter() - started, 3),
            machine=machine_facts(),
            versions=package_versions(),
        )


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


def _parity(session: Session, reference: Path, ids: Ids | None, dtype: str, options: VerifyOptions) -> Parity:
    if ids is None:
        random = np.random.default_rng(options.seed)
        ids = random.integers(0, session.vocab_size, options.parity_tokens, dtype=np.int64)
    expected_by = torch_reference(reference, session.vocab_size)
    rows = make_rows(ids, options.prompt_lengths, options.decode_steps, expected_by)
    return check_parity(session, rows, tolerance_for(dtype))


def torch_reference(checkpoint: Path, vocab_size: int) -> Reference:
    """The checkpoint in float32 torch, as a function from ids [T] to logits [T, V].

    Raises:
        ArtefactError: the checkpoint's vocabulary isn't the engine's.
    """
    import torch

    model = cast(Any, load_model(checkpoint, dtype=torch.float32))
    if model.config.vocab_size != vocab_size:
        raise ArtefactError(
            where=str(checkpoint),
            expected=f"the checkpoint that the engine was made from, with {vocab_size} tokens in its vocabulary",
            found=f"{model.config.vocab_size}",
            fix="pass that checkpoint as --reference",
        )

    def logits(ids: Ids) -> NDArray[np.float32]:
        with torch.inference_mode():
            return model(input_ids=torch.tensor(ids)[None], use_cache=False).logits[0].float().numpy()

    return logits


def _perplexity(
    session: Session, baseline: Path | None, tokens: TokenText, options: VerifyOptions, steps: Steps
) -> Perplexity:
    windows = spread_windows(tokens, windows=options.windows, window_length=options.window_length)
    candidate_losses = window_losses(session, windows, on_window=steps.advance)
    baseline_losses = None
    if baseline is not None:
        with open_session(baseline, threads=options.threads) as dense:
            baseline_losses = window_losses(dense, windows, on_window=steps.advance)
    return compare_losses(candidate_losses, baseline_losses, window_length=options.window_length)
