from __future__ import annotations

import io
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import AutoTokenizer

from hlap_export import generate, reference_model, terminal
from hlap_export.checkpoint import load_model
from hlap_export.errors import ArtefactError, RecipeError, TextError
from hlap_export.generate import Generator, Sampling, converse
from hlap_export.generate.generate import OnText
from tests.test_cli import exit_code
from tests.tiny_engines import altered
from tests.tiny_run import FinishedRun

PROMPT = "import json and return the file"
TEMPLATE = "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}assistant :"


def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def transformers_tokens(finished: FinishedRun, folder: Path, prompt: str, **options: Any) -> list[int]:
    """What transformers' own generate writes after the prompt."""
    ids = tokenizer_of(finished.model)(prompt, return_tensors="pt").input_ids
    model: Any = load_model(folder, dtype=torch.float32)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return written[0, ids.shape[1] :].tolist()


@pytest.fixture
def engine(finished: FinishedRun) -> Path:
    return finished.out / "engine/pruned"


@pytest.fixture
def chatting(engine: Path, tmp_path: Path) -> Path:
    """The engine, its tokenizer with a chat template."""
    return altered(engine, tmp_path / "chatting", lambda copy: (copy / "chat_template.jinja").write_text(TEMPLATE))


def ended_by(engine: Path, copy: Path, eos_token_ids: list[int]) -> Path:
    """The engine, with other tokens that end a text."""
    stated = json.dumps({"eos_token_id": eos_token_ids})
    return altered(engine, copy, lambda folder: (folder / "generation_config.json").write_text(stated))


def test_greedy_text_is_what_transformers_writes(finished: FinishedRun, engine: Path) -> None:
    made = generate(engine, PROMPT, max_new_tokens=40)
    expected = transformers_tokens(finished, finished.out / "checkpoint", PROMPT, max_new_tokens=40, do_sample=False)
    assert list(made.token_ids) == expected
    assert made.text == tokenizer_of(engine).decode(expected, skip_special_tokens=True)
    assert made.num_prompt_tokens == len(tokenizer_of(engine)(PROMPT)["input_ids"])


def test_sampled_text_is_what_transformers_samples_from_the_same_seed(finished: FinishedRun, engine: Path) -> None:
    options = {"temperature": 0.9, "top_k": 20, "top_p": 0.8}
    made = generate(engine, PROMPT, max_new_tokens=40, sampling=Sampling(**options, seed=11))
    torch.manual_seed(11)
    expected = transformers_tokens(
        finished, finished.out / "checkpoint", PROMPT, max_new_tokens=40, do_sample=True, **options
    )
    assert list(made.token_ids) == expected
    assert made.token_ids != generate(engine, PROMPT, max_new_tokens=40).token_ids


def test_text_comes_in_pieces_that_add_up(engine: Path) -> None:
    pieces = list[str]()
    made = generate(engine, PROMPT, max_new_tokens=30, on_text=pieces.append)
    assert "".join(pieces) == made.text
    assert len(pieces) > 5


def test_a_stop_token_of_the_model_ends_the_text(engine: Path, tmp_path: Path) -> None:
    whole = generate(engine, PROMPT, max_new_tokens=20).token_ids
    stop = whole[5]
    made = generate(ended_by(engine, tmp_path / "stopping", [95, stop]), PROMPT, max_new_tokens=20)
    assert made.token_ids == whole[: whole.index(stop) + 1]
    assert made.ended_by == "stop_token"


def test_the_model_s_longest_context_ends_the_text(engine: Path, tmp_path: Path) -> None:
    made = generate(ended_by(engine, tmp_path / "endless", []), PROMPT, max_new_tokens=1000)
    assert made.ended_by == "longest_context"
    assert made.num_prompt_tokens + len(made.token_ids) == 128


def test_one_token_has_a_first_token_time_and_no_speed(engine: Path) -> None:
    made = generate(engine, PROMPT, max_new_tokens=1)
    assert (len(made.token_ids), made.ended_by) == (1, "max_new_tokens")
    assert made.first_token_ms is not None
    assert made.first_token_ms > 0
    assert made.decode_tokens_per_second is None


@pytest.mark.parametrize(
    ("prompt", "max_new_tokens", "error"),
    [("", 5, TextError), ("json " * 200, 5, TextError), (PROMPT, 0, RecipeError)],
)
def test_a_prompt_or_length_that_leaves_nothing_to_write_is_refused(
    engine: Path, prompt: str, max_new_tokens: int, error: type[Exception]
) -> None:
    with pytest.raises(error, match=r"--prompt|--max-new-tokens"):
        generate(engine, prompt, max_new_tokens=max_new_tokens)


def test_a_checkpoint_is_not_an_engine(finished: FinishedRun) -> None:
    with pytest.raises(ArtefactError, match="kind 'engine'"):
        generate(finished.out / "checkpoint", PROMPT)


def test_a_tokenizer_of_another_model_is_refused(engine: Path, tmp_path: Path) -> None:
    def use_the_reference_models(copy: Path) -> None:
        shutil.copyfile(reference_model.path() / "tokenizer.json", copy / "tokenizer.json")

    with pytest.raises(ArtefactError, match="vocabulary of 96"):
        generate(altered(engine, tmp_path / "mixed_up", use_the_reference_models), PROMPT)


def test_chat_goes_through_the_template(chatting: Path) -> None:
    chat = generate(chatting, "read it", chat=True, max_new_tokens=8)
    plain = generate(chatting, "user : read it assistant :", max_new_tokens=8)
    assert (chat.token_ids, chat.num_prompt_tokens) == (plain.token_ids, plain.num_prompt_tokens)


def test_without_a_template_chat_says_so(engine: Path) -> None:
    with pytest.raises(ArtefactError, match="leave --chat out"):
        generate(engine, PROMPT, chat=True)


def test_a_chat_remembers_what_was_said(chatting: Path) -> None:
    with Generator(chatting, sampling=Sampling()) as generator:
        first, second = converse(generator, ["read it", "and again"], chat=True, max_new_tokens=6)
        alone = generator.go_on(f"user : read it assistant : {first.text} user : and again assistant :", 6)
    assert (second.token_ids, second.num_prompt_tokens) == (alone.token_ids, alone.num_prompt_tokens)


def interrupting_at(piece: int) -> OnText:
    """A reader who presses Ctrl-C once, at a piece of text."""
    seen = list[str]()

    def read(text: str) -> None:
        seen.append(text)
        if len(seen) == piece:
            raise KeyboardInterrupt

    return read


def test_ctrl_c_ends_an_answer_and_the_chat_goes_on_with_what_was_said(chatting: Path) -> None:
    whole = generate(chatting, "read it", chat=True, max_new_tokens=30)
    with Generator(chatting, sampling=Sampling(), interruptible=True) as generator:
        lines, on_text = ["read it", "and again"], interrupting_at(3)
        first, second = converse(generator, lines, chat=True, max_new_tokens=30, on_text=on_text)
        alone = generator.go_on(f"user : read it assistant : {first.text} user : and again assistant :", 30)
    assert first.ended_by == "interrupted"
    assert whole.text.startswith(first.text)
    assert 3 <= len(first.token_ids) < 30
    assert (second.token_ids, second.ended_by) == (alone.token_ids, alone.ended_by)


def test_ctrl_c_before_the_first_token_gives_an_empty_answer(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with Generator(engine, sampling=Sampling(), interruptible=True) as generator:
        with monkeypatch.context() as patch:
            patch.setattr(cast(Any, generator)._session, "run", interrupt)
            made = generator.go_on(PROMPT, 5)
        assert (made.text, made.token_ids, made.ended_by) == ("", (), "interrupted")
        assert (made.first_token_ms, made.decode_tokens_per_second) == (None, None)
        assert generator.go_on(PROMPT, 5).token_ids == generate(engine, PROMPT, max_new_tokens=5).token_ids


def test_where_nobody_talks_ctrl_c_ends_the_program_without_a_word_of_resuming(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hlap_export.terminal.write_text", interrupting_at(2))
    assert exit_code("generate", engine, "--prompt", PROMPT) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted"


def test_a_chat_that_outgrows_the_context_forgets_its_oldest_turns_and_says_so(chatting: Path) -> None:
    lines, told = [f"read it {'json ' * 5}"] * 12, list[str]()
    with Generator(chatting, sampling=Sampling()) as generator:
        made = list(converse(generator, lines, chat=True, max_new_tokens=10, tell=told.append))
        with pytest.raises(TextError, match="longest context, 128"):
            list(converse(generator, lines, chat=True, max_new_tokens=10))
    assert len(made) == 12
    assert len(told) >= 2
    assert all("first" in line and "messages are forgotten" in line for line in told)
    lengths = [each.num_prompt_tokens for each in made]
    after = [new for old, new in pairwise(lengths) if new <= old]
    assert len(after) == len(told)
    assert max(after) <= 64


def test_a_line_that_is_too_long_is_told_and_the_chat_goes_on_without_it(chatting: Path) -> None:
    told = list[str]()
    with Generator(chatting, sampling=Sampling()) as generator:
        (made,) = converse(generator, ["json " * 200, "read it"], chat=True, max_new_tokens=6, tell=told.append)
        alone = generator.answer([{"role": "user", "content": "read it"}], 6)
    assert made.token_ids == alone.token_ids
    assert len(told) == 1
    assert "fewer tokens than the model's longest context, 128" in told[0]


def test_the_command_line_writes_text_on_stdout_and_the_speed_on_stderr(
    engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code("generate", engine, "--prompt", PROMPT, "--max-new-tokens", "12") == 0
    out, err = capsys.readouterr()
    assert out == generate(engine, PROMPT, max_new_tokens=12).text + "\n"
    assert "12 new tokens at" in err
    assert "tokens/s, ended by --max-new-tokens" in err


def test_the_command_line_takes_a_piped_prompt_and_gives_json(
    engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n"))  # as echo writes it
    assert exit_code("generate", engine, "--max-new-tokens", "5", "--temperature", "0.7", "--seed", "4", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    sampled = generate(engine, PROMPT, max_new_tokens=5, sampling=Sampling(temperature=0.7, seed=4))
    assert told["token_ids"] == list(sampled.token_ids)
    assert told["num_prompt_tokens"] == sampled.num_prompt_tokens


def test_only_the_last_line_feed_of_a_pipe_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("def read():\n    return\n\n"))
    assert list(terminal.typed_lines()) == ["def read():\n    return\n"]


@pytest.mark.parametrize("ending", [EOFError, KeyboardInterrupt])
def test_typed_lines_are_prompts_until_the_end_of_the_input_or_ctrl_c(
    ending: type[BaseException], engine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["json file", "  ", "return"])

    def answer(mark: str) -> str:
        line = next(typed, None)
        if line is None:
            raise ending
        return line

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    assert exit_code("generate", engine, "--max-new-tokens", "4") == 0
    texts = [generate(engine, prompt, max_new_tokens=4).text for prompt in ("json file", "return")]
    assert capsys.readouterr().out == "".join(f"{text}\n" for text in texts)
