"""What `verify-manifest` found, for a console."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text as Line

from hlap_export.integrity import ManifestReport
from hlap_export.manifest import FILE_DIGEST
from hlap_export.report.wording import in_bytes

SHORT = 12
"""Digits of a digest that a person compares."""


def render_integrity(report: ManifestReport) -> RenderableType:
    """Every artefact with its digest and what it was made from, then what is wrong."""
    names = {artefact.digest: artefact.name for artefact in report.artefacts}
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", padding=(0, 1))
    for column in ("artefact", "kind", "digest", "files", "size", "made from"):
        table.add_column(column, justify="right" if column in ("files", "size") else "left")
    for artefact in report.artefacts:
        made_from = [
            f"{name} {names.get(digest, digest.removeprefix(FILE_DIGEST)[:SHORT])}"
            for name, digest in artefact.made_from.items()
        ]
        table.add_row(
            "this folder" if artefact.name == "." else artefact.name,
            artefact.kind,
            artefact.digest[:SHORT],
            str(artefact.num_files),
            in_bytes(artefact.size_bytes),
            ", ".join(made_from),
        )
    lines = [Line(f"✗ {problem.file}: {problem.damage}, {problem.says}", style="red") for problem in report.problems]
    verdict = Line("✓ every byte is what the manifests say", style="green") if report.is_intact else Line("")
    return Group(table, Padding(Group(*lines, verdict), (0, 1, 1, 2)))
