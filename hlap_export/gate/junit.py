"""Verdicts as JUnit XML, the form in which every CI system shows tests."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hlap_export.gate.report import GateReport, Verdict, in_words

UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML has no form for, and that a name of a task or file may hold nevertheless."""


def junit_xml(report: GateReport) -> str:
    """One test case for each verdict; what is unclear counts as skipped, with the reason."""
    skipped = report.num_skipped + report.num_unclear
    counts = {"tests": len(report.verdicts), "failures": report.num_failed, "skipped": skipped, "errors": 0}
    attributes = {name: str(count) for name, count in counts.items()}
    suites = ElementTree.Element("testsuites", attributes)
    suite = ElementTree.SubElement(suites, "testsuite", attributes | {"name": "hlap-export gate"})
    properties = ElementTree.SubElement(suite, "properties")
    for name in ("candidate", "candidate_digest", "baseline", "baseline_digest", "rules_sha256"):
        value = getattr(report, name)
        ElementTree.SubElement(properties, "property", {"name": name, "value": str(value or "none")})
    for verdict in report.verdicts:
        _add_case(suite, verdict)
    ElementTree.indent(suites)
    for element in suites.iter():
        element.attrib.update({name: UNWRITABLE.sub("\ufffd", value) for name, value in element.attrib.items()})
        element.text = element.text and UNWRITABLE.sub("\ufffd", element.text)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _add_case(suite: ElementTree.Element, verdict: Verdict) -> None:
    name = f"{verdict.metric}: {verdict.rule}"
    case = ElementTree.SubElement(suite, "testcase", {"classname": f"gate.{verdict.name}", "name": name, "time": "0"})
    said = in_words(verdict)
    if verdict.reason:
        said += f"; {verdict.reason}"
    if verdict.outcome == "failed":
        failure = ElementTree.SubElement(case, "failure", {"type": "gate", "message": f"{name}, found {said}"})
        failure.text = f"candidate {verdict.value}, reference {verdict.reference}, from {verdict.source}"
    elif verdict.outcome in ("unclear", "skipped"):
        ElementTree.SubElement(case, "skipped", {"message": f"{verdict.outcome}: {said}"})
