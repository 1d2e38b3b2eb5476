"""An engine as a language model of EleutherAI's lm_eval, which brings the tasks and the metrics.

Tokens, truncation and stop sequences are those of lm_eval's own Hugging Face backend, so that scores can be compared.
lm_eval is optional: this module is imported when an evaluation begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.models import utils as model_utils

from hlap_export.artifacts import read_manifest
from hlap_export.checkpoint import load_tokenizer, read_layout
from hlap_export.checkpoint.generation_config import read_generation_defaults
from hlap_export.engines import open_session
from hlap_export.errors import RecipeError, TextError
from hlap_export.evaluate.likelihood import Continuation, likelihoods
from hlap_export.evaluate.writing import HasEnded, write_rows
from hlap_export.generate import Sampling
from hlap_export.generate.sampling import Choose, chooser
from hlap_export.on_progress import OnProgress, ignore_progress

MAX_NEW_TOKENS = 256
"""Where a task doesn't say; lm_eval's own default."""

SAMPLING_SETTINGS = ("do_sample", "temperature", "top_k", "top_p")

LOOKED_BACK = 2
"""Tokens more than a stop sequence has that are searched for it: a model may write it in smaller pieces."""

# Their types are stated in part only.
_WINDOWS, _SETTINGS = cast(Any, utils), cast(Any, model_utils)

Request = tuple[Any, list[int], list[int]]
"""A key of lm_eval's cache, the context's tokens, the continuation's."""


class EngineLM(TemplateLM):
    """A loaded engine that answers lm_eval's three kinds of requests; use it in a `with` block.

    Args:
        engine_dir: what `build` wrote, with a tokenizer in it.
        batch_size: rows that run together.
        on_progress: is told how many texts are done, of those that were asked for so far.
    """

    def __init__(self, engine_dir: Path, *, batch_size: int, on_progress: OnProgress = ignore_progress) -> None:
        super().__init__()
        self.tokenizer: Any = load_tokenizer(engine_dir)
        self.batch_size = batch_size
        self.max_length = _longest_context(engine_dir)
        self.max_gen_toks = MAX_NEW_TOKENS
        self._engine_dir = engine_dir
        self._stop_ids = frozenset(read_generation_defaults(engine_dir).eos_token_ids)
        self._on_progress, self._num_done, self._num_asked = on_progress, 0, 0
        self._session = open_session(engine_dir)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if self.tokenizer.eos_token_id is not None:
            return int(self.tokenizer.eos_token_id)
        if self._stop_ids:
            return min(self._stop_ids)
        raise TextError(
            where=str(self._engine_dir),
            expected="a token that ends a text, or begins one (eos_token in tokenizer_config.json)",
            found="neither",
            fix="state the tokens that the model was trained with",
        )

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """A name for lm_eval's caches."""
        return str(self._engine_dir).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; special ones as the tokenizer does, unless the text begins with one already."""
        if add_special_tokens is None:
            prefix = str(self.tokenizer.decode(self.prefix_token_id))
            add_special_tokens = False if string.startswith(prefix) else None
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as a prompt."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(self, requests: Sequence[Request], **_: Any) -> list[tuple[float, bool]]:
        """Log probability in nats of each continuation, and whether it is what the engine would write."""
        texts = [self._continuation(context, continuation) for _, context, continuation in requests]
        self._num_asked += len(texts)
        scored = likelihoods(
            self._session, texts, batch_size=self.batch_size, longest=self.max_length, on_text=self._count
        )
        return [(likelihood.log_probability_nats, likelihood.is_greedy) for likelihood in scored]

    def _continuation(self, context: list[int], continuation: list[int]) -> Continuation:
        if not 0 < len(continuation) <= self.max_length:
            raise TextError(
                where="the task",
                expected=f"continuations of 1 to {self.max_length} tokens, the model's longest context",
                found=f"one of {len(continuation)} tokens",
                fix="choose a task with texts of other lengths",
            )
        # A context of spaces alone has gone into the continuation, with lm_eval's own backend into an assertion.
        return Continuation(context=tuple(context) or (self.prefix_token_id,), scored=tuple(continuation))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log probability in nats of whole texts, in windows with as much context as the engine takes."""
        windows: list[list[Request]] = [self._windows(str(request.args[0])) for request in requests]
        scores = iter(self._loglikelihood_tokens([window for text in windows for window in text]))
        return [sum(next(scores)[0] for _ in text) for text in windows]

    def _windows(self, text: str) -> list[Request]:
        windows = _WINDOWS.get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [(None, *_WINDOWS.make_disjoint_window(window)) for window in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the engine writes after each context, up to a stop sequence."""
        self._num_asked += len(requests)
        alike: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(repr(request.args[1]), []).append(index)
        texts: dict[int, str] = {}
        for indices in alike.values():
            settings = dict(_SETTINGS.normalize_gen_kwargs(requests[indices[0]].args[1], MAX_NEW_TOKENS))
            # One for all batches: begun anew with each, equal rows of theirs would draw the same tokens.
            choose = chooser(_sampling(settings))
            prompts = {index: self.tok_encode(requests[index].args[0]) for index in indices}
            waiting = sorted(indices, key=lambda index: (-len(prompts[index]), index))
            for start in range(0, len(waiting), self.batch_size):
                batch = waiting[start : start + self.batch_size]
                texts |= zip(batch, self._write([prompts[index] for index in batch], settings, choose), strict=True)
        return [texts[index] for index in range(len(requests))]

    def _write(self, prompts: list[list[int]], settings: dict[str, Any], choose: Choose) -> list[str]:
        """Texts after prompts that share the task's settings."""
        max_new_tokens = int(settings["max_gen_toks"])
        room = self.max_length - max_new_tokens
        if room < 1:
            raise RecipeError(
                where="the task's max_gen_toks",
                expected=f"fewer than the model's longest context, {self.max_length}",
                found=str(max_new_tokens),
                fix="choose a task with shorter answers",
            )
        end_of_text = self.tokenizer.decode(self.eot_token_id)
        stops: list[str] = _SETTINGS.handle_stop_sequences(settings["until"], eos=end_of_text)
        written = write_rows(
            self._session,
            [tuple(prompt[-room:]) for prompt in prompts],
            choose,
            self._has_ended(stops),
            max_new_tokens=max_new_tokens,
        )
        self._count(len(written))
        texts = [self.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in written]
        return [str(_SETTINGS.postprocess_generated_text(text, stops, None)) for text in texts]

    def _has_ended(self, stops: list[str]) -> HasEnded:
        """Whether the last tokens hold a stop sequence."""
        lengths = [len(self.tokenizer.encode(stop, add_special_tokens=False)) for stop in stops]
        looked_at = max(lengths, default=0) + LOOKED_BACK

        def has_ended(tokens: list[int]) -> bool:
            last = self.tokenizer.decode(tokens[-looked_at:])
            return tokens[-1] in self._stop_ids or any(stop in last for stop in stops if stop)

        return has_ended

    def _count(self, texts: int = 1) -> None:
        self._num_done += texts
        self._on_progress(self._num_done, self._num_asked)

    def get_model_info(self) -> dict[str, Any]:
        """What goes into lm_eval's own results."""
        return {"engine": str(self._engine_dir)}

    def close(self) -> None:
        """Free the engine's memory."""
        self._session.close()


def _longest_context(engine_dir: Path) -> int:
    """Tokens that the model has positions for, or fewer where the engine's cache has a fixed capacity."""
    positions = read_layout(engine_dir).max_positions
    return min(positions, int(read_manifest(engine_dir, kind="engine").parameters.get("capacity", positions)))


def _sampling(settings: dict[str, Any]) -> Sampling:
    """How a task wants its tokens chosen.

    Raises:
        RecipeError: by a setting that engines don't have.
    """
    unknown = settings.keys() - {"until", "max_gen_toks", *SAMPLING_SETTINGS}
    if unknown:
        raise RecipeError(
            where="the task's generation_kwargs",
            expected=f"until, max_gen_toks, {', '.join(SAMPLING_SETTINGS)}",
            found=", ".join(sorted(unknown)),
            fix="choose a task without it",
        )
    if not settings.get("do_sample"):
        return Sampling()
    return Sampling(
        temperature=float(settings.get("temperature") or 1.0),
        top_k=int(settings.get("top_k", 0)),
        top_p=float(settings.get("top_p", 1.0)),
    )
