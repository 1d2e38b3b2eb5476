"""What `lint` found, as it is stored and printed."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, computed_field

from hlap_export.errors import CheckFailed

Severity = Literal["error", "warning", "note"]


class Finding(BaseModel):
    """One thing that a compiler would refuse, misread, or make slow.

    Attributes:
        rule: its name in the rule table.
        severity: error: the build fails, or its result is wrong. warning: it may. note: it works, not at its best.
        where: the node, input or output.
        operator: of the node; None for inputs and outputs.
        layer: of the model, 0 at the embedding; None outside of layers.
        source: where the rule is known from, with its version.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str
    severity: Severity
    where: str
    operator: str | None
    layer: int | None
    expected: str
    found: str
    fix: str
    source: str


class LintReport(BaseModel):
    """All findings of one graph for one compiler, errors first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["hlap-export/lint/1"] = "hlap-export/lint/1"
    graph: str
    target: str
    matrix: str
    num_nodes: int
    findings: tuple[Finding, ...]

    @computed_field
    @property
    def passed(self) -> bool:
        """Whether there is no error; warnings and notes don't count."""
        return not self.errors

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What the compiler would refuse or misread."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    def require_passed(self) -> None:
        """Do nothing if there is no error.

        Raises:
            CheckFailed: with the first error; exit code 1.
        """
        if self.passed:
            return
        first, others = self.errors[0], len(self.errors) - 1
        raise CheckFailed(
            where=f"{self.graph}, {first.where}",
            expected=first.expected,
            found=first.found + (f" (and {others} more errors)" if others else ""),
            fix=first.fix,
        )
