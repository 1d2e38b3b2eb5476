"""lm_eval on our engine against lm_eval's own backend on the checkpoint: request by request, and score by score."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hlap_export.artifacts import read_manifest, write_manifest
from hlap_export.errors import ArtefactError, BackendMissing, RecipeError, TextError
from hlap_export.evaluate import EvaluateOptions, Score, evaluate
from hlap_export.evaluate.evaluate import scores_of
from tests.evaluate.tasks import NUM_DOCUMENTS, TASKS, documents
from tests.test_cli import exit_code

pytest.importorskip("lm_eval", reason="lm_eval isn't installed: pip install '.[eval]'")

# Sums of float32 logits' logarithms over a hundred tokens, by two implementations.
SCORE_ERROR = 1e-3
LONGEST = 64


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=argument) for argument in arguments]


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    """lm_eval's own backend, with a short context so that windows are needed."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(checkpoint),
        trust_remote_code=True,
        dtype="float32",
        device="cpu",
        batch_size=4,
        max_length=LONGEST,
    )


@pytest.fixture(scope="module")
def ours(engine: Path) -> Iterator[Any]:
    from hlap_export.evaluate.engine_lm import EngineLM

    lm = EngineLM(engine, batch_size=4)
    lm.max_length = LONGEST
    yield lm
    lm.close()


def test_likelihoods_are_those_of_lm_eval_s_own_backend(ours: Any, theirs: Any) -> None:
    pairs = [(document["begin"], document[answer]) for document in documents() for answer in ("right", "wrong")]
    pairs += [("", "import os"), ("def f(x): ", "return x"), (documents()[0]["text"] * 2, " x = 1")]
    got, expected = ours.loglikelihood(requests(*pairs)), theirs.loglikelihood(requests(*pairs), disable_tqdm=True)
    assert [value for value, _ in got] == pytest.approx([value for value, _ in expected], abs=SCORE_ERROR)
    assert [greedy for _, greedy in got] == [greedy for _, greedy in expected]


def test_texts_longer_than_the_context_are_scored_in_the_same_windows(ours: Any, theirs: Any) -> None:
    texts = [(document["text"],) for document in documents()[:4]] + [("x",)]
    assert len(ours.tok_encode(texts[0][0])) > LONGEST
    got, expected = ours.loglikelihood_rolling(requests(*texts)), theirs.loglikelihood_rolling(requests(*texts))
    assert got == pytest.approx(expected, abs=SCORE_ERROR)


def test_written_texts_are_those_of_lm_eval_s_own_backend(ours: Any, theirs: Any) -> None:
    settings = [{"until": ["\n", ")"], "max_gen_toks": 10, "do_sample": False}, {"until": [], "max_gen_toks": 5}]
    asked = [(document["begin"], setting) for document in documents() for setting in settings]
    asked.append((documents()[0]["text"], settings[0]))  # longer than the context
    got = ours.generate_until(requests(*asked))
    assert got == theirs.generate_until(requests(*asked), disable_tqdm=True)
    assert len(set(got)) > NUM_DOCUMENTS


def test_a_setting_that_engines_don_t_have_is_refused_by_name(ours: Any) -> None:
    with pytest.raises(RecipeError, match="num_beams"):
        ours.generate_until(requests(("import", {"until": [], "max_gen_toks": 5, "num_beams": 4})))


def test_answers_that_leave_no_room_for_a_question_are_refused(ours: Any) -> None:
    with pytest.raises(RecipeError, match=f"longest context, {LONGEST}"):
        ours.generate_until(requests(("import", {"until": [], "max_gen_toks": LONGEST})))


def test_a_continuation_longer_than_the_context_is_refused(ours: Any) -> None:
    with pytest.raises(TextError, match=f"1 to {LONGEST} tokens"):
        ours.loglikelihood(requests(("import", " os" * 100)))


def test_an_engine_of_a_fixed_capacity_has_that_context(engine: Path, tmp_path: Path) -> None:
    from hlap_export.evaluate.engine_lm import EngineLM

    small = tmp_path / "small"
    shutil.copytree(engine, small)
    manifest = read_manifest(engine)
    write_manifest(
        small, kind="engine", parameters={**manifest.parameters, "capacity": 96}, inputs=manifest.inputs, facts={}
    )
    with closing(EngineLM(small, batch_size=1)) as lm:
        assert lm.max_length == 96


def test_sampled_texts_depend_on_the_temperature(ours: Any) -> None:
    sampled = {"until": [], "max_gen_toks": 20, "do_sample": True, "temperature": 1.5}
    greedy = {"until": [], "max_gen_toks": 20}
    assert ours.generate_until(requests(("def ", sampled))) != ours.generate_until(requests(("def ", greedy)))


def test_equal_texts_in_different_batches_are_continued_by_different_draws(ours: Any) -> None:
    sampled = {"until": [], "max_gen_toks": 10, "do_sample": True, "temperature": 1.5}
    texts = ours.generate_until(requests(*[("def ", sampled)] * (3 * ours.batch_size)))
    assert len(set(texts)) > 2 * ours.batch_size


def test_an_engine_that_was_changed_is_not_scored(engine: Path, tasks_folder: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(engine, tmp_path / "changed")
    (changed / "config.json").write_bytes((changed / "config.json").read_bytes() + b" ")
    for first, second in ((changed, engine), (engine, changed)):
        with pytest.raises(ArtefactError, match="found different bytes or files"):
            evaluate(
                first, ["local_choice"], baseline=second, options=EvaluateOptions(tasks_folder=tasks_folder, limit=1)
            )


def test_a_score_that_is_no_number_is_none_and_its_report_comes_back() -> None:
    results = {
        "results": {"t": {"ppl,none": math.inf, "ppl_stderr,none": math.nan, "acc,none": 0.5, "alias": "t"}},
        "versions": {"t": 1},
        "higher_is_better": {"t": {"ppl": False, "acc": True}},
        "n-samples": {"t": {"effective": 4}},
        "n-shot": {"t": 0},
    }
    broken, fine = scores_of(results)
    assert (broken.value, broken.standard_error, fine.value) == (None, None, 0.5)
    assert Score.model_validate_json(broken.model_dump_json()) == broken


@pytest.fixture(scope="module")
def expected(checkpoint: Path, tasks_folder: Path) -> dict[str, Any]:
    """Results of lm_eval's own backend, with the model's own context."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=str(checkpoint), trust_remote_code=True, dtype="float32", device="cpu", batch_size=4)
    manager = TaskManager(include_path=str(tasks_folder), include_defaults=False)
    evaluated: Any = simple_evaluate(
        model=lm, tasks=list(TASKS), task_manager=manager, log_samples=False, bootstrap_iters=0
    )
    return evaluated["results"]


def test_scores_of_every_task_are_those_of_lm_eval_s_own_backend(
    engine: Path, tasks_folder: Path, expected: dict[str, Any]
) -> None:
    report = evaluate(engine, list(TASKS), options=EvaluateOptions(tasks_folder=tasks_folder, batch_size=4))
    got = {(score.task, score.metric): score.value for score in report.scores}
    assert set(got) == {
        ("local_choice", "acc"),
        ("local_choice", "acc_norm"),
        ("local_write", "bleu"),
        ("local_write", "ter"),
        ("local_texts", "byte_perplexity"),
    }
    for (task, metric), value in got.items():
        assert value == pytest.approx(expected[task][f"{metric},none"], abs=SCORE_ERROR), (task, metric)
    assert {(score.num_samples, score.version, score.num_fewshot) for score in report.scores} == {
        (NUM_DOCUMENTS, "3", 0)
    }
    assert [score.higher_is_better for score in report.scores] == [True, True, True, False, False]


def test_the_command_line_compares_with_a_baseline_and_keeps_stdout_for_the_result(
    engine: Path, tasks_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--tasks", "local_write, local_choice", "--tasks-folder", tasks_folder, "--limit", "3")
    assert exit_code("eval", engine, *arguments, "--baseline", engine, "--json") == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    scores = [Score.model_validate(score) for score in told["scores"]]
    assert {score.task for score in scores} == {"local_write", "local_choice"}
    assert all(score.baseline == score.value and score.num_samples == 3 for score in scores)
    assert set(told["inputs"]) == {"engine", "baseline"}
    assert told["versions"]["lm_eval"]
    assert "it/s" not in err


def test_the_command_line_shows_a_table(engine: Path, tasks_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("eval", engine, "--tasks", "local_texts", "--tasks-folder", tasks_folder, "--limit", "2") == 0
    out = capsys.readouterr().out
    assert "local_texts" in out
    assert "↓ byte_perplexity" in out


def test_an_unknown_task_is_refused_with_the_nearest_names(
    engine: Path, tasks_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval import tasks

    # Without lm_eval's own tasks, whose names take ten seconds to read.
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    with pytest.raises(RecipeError, match=r"found 'local_choise'.*did you mean local_choice"):
        evaluate(engine, ["local_choise"], options=EvaluateOptions(tasks_folder=tasks_folder))


def test_questions_that_can_t_be_read_are_an_error_in_words(engine: Path, tasks_folder: Path, tmp_path: Path) -> None:
    task = (tasks_folder / "local_texts.yaml").read_text().replace("documents.jsonl", "lost.jsonl")
    (tmp_path / "lost.yaml").write_text(task.replace("task: local_texts", "task: lost"))
    with pytest.raises(TextError, match="the data of lost: expected questions that can be read"):
        evaluate(engine, ["lost"], options=EvaluateOptions(tasks_folder=tmp_path))


def test_a_checkpoint_is_not_an_engine(checkpoint: Path) -> None:
    with pytest.raises(ArtefactError, match="kind 'engine'"):
        evaluate(checkpoint, ["local_choice"])


def test_without_lm_eval_the_verb_says_what_to_install(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BackendMissing, match=r"hlap-export\[eval\]"):
        evaluate(engine, ["local_choice"])
