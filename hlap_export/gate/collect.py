"""From the reports of a run to the metrics that a gate judges."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from hlap_export.bench.report import BenchReport, LatencyRow, MemoryRow
from hlap_export.bench.statistics import Z
from hlap_export.digests import file_sha256
from hlap_export.errors import ArtefactError
from hlap_export.evaluate.report import EvaluationReport
from hlap_export.gate.change import ratio_of
from hlap_export.gate.results import Estimate, Metric, MetricName, Origin, Results, Windows
from hlap_export.verify.report import Perplexity, VerifyReport

BENCH, VERIFY, EVAL = "bench.json", "verify.json", "eval.json"
AnyReport = VerifyReport | BenchReport | EvaluationReport | Results
Report = TypeVar("Report", bound=BaseModel)
SIZES: dict[MetricName, str] = {
    "engine_bytes": "engine_file_bytes",
    "weight_bytes": "weight_bytes",
    "kv_bytes_per_token": "kv_bytes_per_token",
}
"""Metrics that are counted, and their fields in the report."""


def read_results(path: Path) -> Results:
    """The results of a run's folder, of a report that `bench` or `verify` printed as JSON, or that `gate` accepted.

    Raises:
        ArtefactError: nothing of that, or reports of different engines.
    """
    if path.is_dir():
        files = [path / name for name in (VERIFY, BENCH, EVAL) if (path / name).is_file()]
        if not files:
            raise ArtefactError(
                where=str(path),
                expected=f"a run's folder with {VERIFY} and {BENCH}",
                found="neither of them",
                fix="pass what `hlap-export run` wrote, or the JSON of `bench` or `verify`",
            )
        reports = [_read_report(file) for file in files]
        if any(isinstance(report, Results) for report in reports):
            raise _not_results(path, "results under the name of a report")
    else:
        files, reports = [path], [_read_report(path)]
        if isinstance(reports[0], Results):
            return reports[0]
    return collect(
        next((each for each in reports if isinstance(each, VerifyReport)), None),
        next((each for each in reports if isinstance(each, BenchReport)), None),
        next((each for each in reports if isinstance(each, EvaluationReport)), None),
        origins=tuple(Origin(file=file.name, sha256=file_sha256(file)) for file in files),
    )


def collect(
    verified: VerifyReport | None,
    timed: BenchReport | None,
    scored: EvaluationReport | None = None,
    *,
    origins: tuple[Origin, ...] = (),
) -> Results:
    """Every number of the reports, one of which must be there, that a rule can name.

    Raises:
        ArtefactError: they are of different engines.
    """
    digests = {
        name: digest
        for name, digest in (
            (VERIFY, verified and verified.candidate_digest),
            (BENCH, timed and timed.candidate_digest),
            (EVAL, scored and scored.inputs["engine"]),
        )
        if digest
    }
    if len(set(digests.values())) > 1:
        raise ArtefactError(
            where=", ".join(digests),
            expected="reports of the same engine",
            found=", ".join(digest[:12] for digest in digests.values()),
            fix="verify, bench and evaluate the same engine, or pass one of the files alone",
        )
    latest = timed or verified
    about = timed or verified or scored
    assert about is not None, "at least one report"
    return Results(
        candidate_digest=next(iter(digests.values())),
        dense_digest=latest.baseline_digest if latest else None,
        dtype=latest.dtype if latest else None,
        threads=latest.threads if latest else None,
        machine=about.machine,
        versions=about.versions,
        disturbed=timed.conditions.disturbed if timed else (),
        origins=origins,
        metrics=(
            *(_of_verify(verified) if verified else ()),
            *(_of_bench(timed) if timed else ()),
            *(_of_evaluation(scored) if scored else ()),
        ),
    )


def _of_verify(report: VerifyReport) -> Iterator[Metric]:
    failed = sum(not check.passed for check in report.checks)
    yield Metric(name="failed_checks", estimate=Estimate.exactly(failed), source=f"{VERIFY}#/checks")
    for index, check in enumerate(report.checks):
        yield Metric(
            name="check",
            check=check.name,
            estimate=Estimate.exactly(check.value),
            source=f"{VERIFY}#/checks/{index}",
        )
    agreement = Estimate.exactly(report.greedy.agreement)
    yield Metric(name="greedy_agreement", estimate=agreement, source=f"{VERIFY}#/greedy/agreement")
    if (measured := report.perplexity) is not None:
        of, source = measured.candidate, f"{VERIFY}#/perplexity"
        tokens = report.tokens
        text = f"{tokens.sha256 or f'random {tokens.seed}'}, {measured.num_windows} x {measured.window_length}"
        yield Metric(
            name="perplexity",
            estimate=Estimate(
                value=of.perplexity,
                low=of.perplexity_low,
                high=of.perplexity_high,
                freedom=measured.num_windows - 1 or None,
            ),
            to_dense=_increase(measured),
            windows=Windows(text=text, losses_nats_per_token=of.window_losses_nats_per_token),
            source=source,
        )


def _increase(measured: Perplexity) -> Estimate | None:
    value, low, high = measured.increase_ratio, measured.increase_ratio_low, measured.increase_ratio_high
    if value is None or low is None or high is None:
        return None
    return Estimate(value=1 + value, low=1 + low, high=1 + high, freedom=measured.num_windows - 1 or None)


def _of_bench(report: BenchReport) -> Iterator[Metric]:
    for index, row in enumerate(report.latency):
        yield from _of_row(row, f"{BENCH}#/latency/{index}")
    ours, dense = report.candidate_memory, report.baseline_memory
    peak, source = _peak(ours), f"{BENCH}#/candidate_memory"
    yield Metric(
        name="peak_memory_bytes",
        batch=report.memory_batch,
        tokens=report.memory_prompt_length,
        estimate=peak,
        to_dense=ratio_of(peak, _peak(dense)),
        source=f"{source}/peak_rss_bytes",
    )
    for name in SIZES:
        if (size := _size(ours, name)) is not None:
            whole = _size(dense, name)
            yield Metric(
                name=name,
                estimate=Estimate.exactly(size),
                to_dense=Estimate.exactly(size / whole) if whole else None,
                source=f"{source}/{SIZES[name]}",
            )


def _peak(row: MemoryRow) -> Estimate:
    """Few processes were looked at: what they needed spans the interval."""
    return Estimate(value=row.peak_rss_bytes, low=row.peak_rss_low_bytes, high=row.peak_rss_high_bytes)


def _size(row: MemoryRow, name: MetricName) -> int | None:
    return getattr(row, SIZES[name])


def _of_row(row: LatencyRow, source: str) -> Iterator[Metric]:
    time = row.candidate
    freedom = row.num_rounds - 1 or None  # a single round is resampled in blocks, and nothing of it is Student's
    ratio = Estimate(value=row.ratio, low=row.ratio_low, high=row.ratio_high, freedom=freedom)
    point = {"batch": row.batch, "tokens": row.num_tokens, "noise": row.noise, "source": source}
    yield Metric.model_validate(
        point
        | {
            "name": f"{row.phase}_ms",
            "estimate": Estimate(value=time.p50_ms, low=time.p50_low_ms, high=time.p50_high_ms, freedom=freedom),
            "to_dense": ratio,
        }
    )
    yield Metric.model_validate(point | {"name": f"{row.phase}_ratio", "estimate": ratio})


def _of_evaluation(report: EvaluationReport) -> Iterator[Metric]:
    for index, score in enumerate(report.scores):
        if score.value is None:
            continue  # a rule on it finds nothing, and fails
        found = _score(score.value, score.standard_error)
        compared = None if score.baseline is None else _score(score.baseline, score.baseline_standard_error)
        has_ratio = compared is not None and min(found.low, compared.low) > 0
        yield Metric(
            name="score",
            task=" ".join((score.task, score.metric, *(() if score.filter == "none" else (score.filter,)))),
            estimate=found,
            to_dense=ratio_of(found, compared) if compared and has_ratio else None,
            dense=None if has_ratio else compared,
            source=f"{EVAL}#/scores/{index}",
        )


def _score(value: float, standard_error: float | None) -> Estimate:
    half = Z * (standard_error or 0.0)
    return Estimate(value=value, low=value - half, high=value + half)


def _read_report(path: Path) -> AnyReport:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _not_results(path, str(error.strerror if isinstance(error, OSError) else error)) from error
    try:
        loaded: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise _not_results(path, f"no JSON ({error})") from error
    kind = cast(dict[str, Any], loaded).get("format") if isinstance(loaded, dict) else None
    for model in (VerifyReport, BenchReport, EvaluationReport, Results):
        if kind == model.model_fields["format"].default:
            return _validated(path, text, model)
    raise _not_results(path, f"format {kind!r}")


def _validated(path: Path, text: str, model: type[Report]) -> Report:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise _not_results(path, f"{place}: {problem['msg']}") from error


def _not_results(path: Path, found: str) -> ArtefactError:
    return ArtefactError(
        where=str(path),
        expected=f"a run's folder, {BENCH}, {VERIFY}, {EVAL}, or results that `gate --accept` wrote",
        found=found,
        fix="pass what `hlap-export run` wrote, or the JSON that `bench --json`, `verify --json` or `eval --json` "
        "printed; results of an earlier version must be measured again",
    )
