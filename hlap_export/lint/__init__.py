"""Lint: what TensorRT would refuse, misread or make slow, said before it is asked."""

from hlap_export.lint.lint import lint
from hlap_export.lint.report import Finding, LintReport, Severity

__all__ = ["Finding", "LintReport", "Severity", "lint"]
