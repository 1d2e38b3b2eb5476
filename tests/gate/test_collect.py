from __future__ import annotations

import json
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from hlap_export.digests import file_sha256
from hlap_export.errors import ArtefactError
from hlap_export.evaluate.report import EvaluationReport
from hlap_export.gate.collect import collect, read_results
from hlap_export.gate.results import Results
from tests.gate.runs import evaluation, plain_bench, results, text_losses, verify_report
from tests.tiny_run import FinishedRun


def test_a_finished_run_can_be_gated_as_a_folder_or_by_the_results_that_it_wrote(finished: FinishedRun) -> None:
    found = read_results(finished.out)
    assert found == read_results(finished.out / "results.json")
    names = {metric.name for metric in found.metrics}
    assert names >= {"failed_checks", "check", "perplexity", "prefill_ms", "decode_ratio", "peak_memory_bytes"}
    assert {origin.file: origin.sha256 for origin in found.origins} == {
        name: file_sha256(finished.out / name) for name in ("verify.json", "bench.json")
    }


def test_every_number_lies_where_its_source_says(finished: FinishedRun) -> None:
    reports = {name: json.loads((finished.out / name).read_text()) for name in ("bench.json", "verify.json")}

    def at(source: str) -> Any:
        name, _, path = source.partition("#/")
        return reduce(lambda node, key: node[int(key) if key.isdigit() else key], path.split("/"), reports[name])

    for metric in read_results(finished.out).metrics:
        place, value = at(metric.source), metric.estimate.value
        match metric.name:
            case "failed_checks":
                assert value == sum(not check["passed"] for check in place)
            case "check":
                assert (metric.check, value) == (place["name"], place["value"])
            case "perplexity":
                assert value == place["candidate"]["perplexity"]
            case "prefill_ms" | "decode_ms":
                assert f"{place['phase']}_ms" == metric.name
                assert (metric.batch, metric.tokens) == (place["batch"], place["num_tokens"])
                assert value == place["candidate"]["p50_ms"]
            case "prefill_ratio" | "decode_ratio":
                assert value == place["ratio"]
            case _:
                assert value == place


def test_intervals_are_those_of_the_reports() -> None:
    losses, dense = text_losses()
    by_name = {metric.name: metric for metric in results(verify_report(losses, dense), plain_bench()).metrics}
    assert by_name["decode_ms"].estimate.low == pytest.approx(1.7 * 0.8 * 0.98)
    assert by_name["decode_ms"].to_dense == by_name["decode_ratio"].estimate
    perplexity = by_name["perplexity"]
    assert perplexity.estimate.low < perplexity.estimate.value < perplexity.estimate.high
    assert perplexity.windows is not None
    assert perplexity.windows.losses_nats_per_token == pytest.approx(losses, abs=1e-6)


def test_a_report_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(plain_bench().model_dump_json())
    assert {metric.name for metric in read_results(tmp_path / "b.json").metrics} >= {"decode_ms", "engine_bytes"}
    (tmp_path / "v.json").write_text(verify_report(*text_losses()).model_dump_json())
    assert read_results(tmp_path / "v.json").metrics == collect(verify_report(*text_losses()), None).metrics


def two_scores() -> EvaluationReport:
    """One with a baseline, one without."""
    report = evaluation(0.6, 0.01, baseline=0.8, baseline_standard_error=0.01)
    alone = report.scores[0].model_copy(update={"metric": "acc_norm", "filter": "strict", "baseline": None})
    return report.model_copy(update={"scores": (*report.scores, alone)})


def test_scores_of_lm_eval_come_with_the_interval_of_their_standard_error(tmp_path: Path) -> None:
    (tmp_path / "eval.json").write_text(two_scores().model_dump_json())
    (tmp_path / "bench.json").write_text(plain_bench().model_dump_json())
    first, second = (metric for metric in read_results(tmp_path).metrics if metric.name == "score")
    assert (first.task, first.label, second.task) == ("arc_easy acc", "score arc_easy acc", "arc_easy acc_norm strict")
    assert (first.estimate.low, first.estimate.high) == pytest.approx((0.5804, 0.6196), abs=1e-4)
    assert first.to_dense is not None
    assert second.to_dense is None
    assert first.to_dense.value == pytest.approx(0.75)
    # Relative errors of 3.3 % and 2.5 % make one of 4.1 %.
    assert (first.to_dense.low, first.to_dense.high) == pytest.approx((0.720, 0.781), abs=1e-3)
    assert read_results(tmp_path / "eval.json").metrics == (first, second)
    with pytest.raises(ArtefactError, match="the same engine"):
        collect(None, plain_bench(), two_scores().model_copy(update={"inputs": {"engine": "0" * 64}}))


def test_reports_of_different_engines_are_refused() -> None:
    with pytest.raises(ArtefactError, match="reports of the same engine"):
        results(verify_report(*text_losses()), plain_bench(candidate_digest="0" * 64))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("not json", "no JSON"),
        ("[]", "format None"),
        ('{"format": "hlap-export/summary/1"}', "format 'hlap-export/summary/1'"),
        ('{"format": "hlap-export/bench/1"}', "must be measured again"),
        ('{"format": "hlap-export/results/1"}', "candidate_digest: Field required"),
    ],
)
def test_what_is_no_result_is_told_by_what_it_is(content: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ArtefactError) as caught:
        read_results(path)
    assert says in str(caught.value)


def test_a_folder_without_reports_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="neither of them"):
        read_results(tmp_path)


def test_results_come_back_from_json_as_they_were() -> None:
    assert Results.model_validate_json(results().model_dump_json()) == results()
