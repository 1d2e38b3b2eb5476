"""The README's first screen is what the commands print."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from hlap_export.report.screen import render_summary
from hlap_export.report.summary import Summary

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readmes_table_is_what_the_stored_demo_run_prints() -> None:
    found = re.search(r"\((benchmarks/results/\S+_demo\.json)\)", README)
    assert found, "the README must link the demo's stored result"
    summary = Summary.model_validate_json((ROOT / found[1]).read_text(encoding="utf-8"))
    drawn = io.StringIO()
    Console(file=drawn, width=100, color_system=None).print(render_summary(summary))
    shown = re.search(r"<!-- demo -->\n```\n(.*?)```\n<!-- /demo -->", README, re.DOTALL)
    assert shown
    assert lines(shown[1]) == lines(drawn.getvalue())


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip("\n").splitlines() if line.strip()]
