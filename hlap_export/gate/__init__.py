"""Gate: may an engine ship? Rules on its numbers, decided by their intervals."""

from hlap_export.gate.gate import gate
from hlap_export.gate.report import GateReport, Verdict
from hlap_export.gate.results import Results

__all__ = ["GateReport", "Results", "Verdict", "gate"]
