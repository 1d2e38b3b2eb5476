"""May this engine ship? Hold a run's results against rules and the run that was accepted last."""

from __future__ import annotations

from pathlib import Path

from hlap_export.artifacts import write_text_whole
from hlap_export.digests import file_sha256
from hlap_export.errors import OutputError
from hlap_export.gate.collect import read_results
from hlap_export.gate.decide import decide
from hlap_export.gate.junit import junit_xml
from hlap_export.gate.report import GateReport, Outcome, Verdict
from hlap_export.gate.results import Results
from hlap_export.gate.rules import load_rules


def gate(
    baseline: Path,
    candidate: Path,
    rules: Path,
    *,
    accept: bool = False,
    junit: Path | None = None,
) -> GateReport:
    """Decide each rule by the interval of what it is about.

    Args:
        baseline: the accepted run: results, a run's folder, or the JSON of bench or verify. It may be missing if
            `accept` is given, or if no rule is against it.
        candidate: the run that is judged, in any of these forms.
        rules: YAML.
        accept: make the candidate the baseline. Rules against the accepted run are then told but don't fail; if one
            of the others does, nothing is accepted.
        junit: where to write JUnit XML; None for nowhere.

    Returns:
        The verdicts. Failed rules don't raise here: `report.require_passed()` does.

    Raises:
        RecipeError: the rules can't be read.
        ArtefactError: the results can't be read.
        OutputError: `accept` would overwrite something else than results.
    """
    asked, new = load_rules(rules), read_results(candidate)
    needs_accepted = any(rule.against == "accepted" for rule in asked.rules)
    known = read_results(baseline) if baseline.exists() or (needs_accepted and not accept) else None
    if accept:
        _require_replaceable(baseline)
    verdicts = tuple(
        _excused(verdict) if accept and "against accepted" in verdict.rule else verdict
        for verdict in decide(asked, new, known)
    )
    passed = _count(verdicts, "failed") == 0
    report = GateReport(
        candidate=str(candidate),
        candidate_digest=new.candidate_digest,
        baseline=str(baseline),
        baseline_digest=known.candidate_digest if known else None,
        rules=str(rules),
        rules_sha256=file_sha256(rules),
        verdicts=verdicts,
        num_passed=_count(verdicts, "passed"),
        num_failed=_count(verdicts, "failed"),
        num_unclear=_count(verdicts, "unclear"),
        num_skipped=_count(verdicts, "skipped"),
        passed=passed,
        accepted=accept and passed,
    )
    if report.accepted:
        write_text_whole(baseline, new.model_dump_json(indent=2) + "\n")
    if junit is not None:
        write_text_whole(junit, junit_xml(report))
    return report


def _require_replaceable(baseline: Path) -> None:
    """A run's own files are never overwritten by what was accepted."""
    if baseline.is_dir() or (baseline.is_file() and f'"{_FORMAT}"' not in baseline.read_text(errors="replace")[:200]):
        raise OutputError(
            where=str(baseline),
            expected="a new file for --accept, or results that it wrote before",
            found="a folder" if baseline.is_dir() else "another file",
            fix="pass --baseline accepted.json, and keep that file with the code",
        )


_FORMAT = Results.model_fields["format"].default


def _excused(verdict: Verdict) -> Verdict:
    """A change from the accepted run is what accepting is for."""
    if verdict.outcome != "failed":
        return verdict
    reason = "; ".join(filter(None, ("accepted with --accept", verdict.reason)))
    return verdict.model_copy(update={"outcome": "skipped", "reason": reason})


def _count(verdicts: tuple[Verdict, ...], outcome: Outcome) -> int:
    return sum(verdict.outcome == outcome for verdict in verdicts)
