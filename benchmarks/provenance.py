"""Where a result comes from: what every benchmark writes beside its numbers."""

from __future__ import annotations

import subprocess
from datetime import date
from pathlib import Path
from typing import Any

from hlap_export.artifacts import machine_facts, package_versions


def provenance(benchmark: str) -> dict[str, Any]:
    """Name, date, commit, machine and versions; ask at the start, for sources may change while a benchmark runs."""
    return {
        "benchmark": benchmark,
        "date": date.today().isoformat(),
        "commit": _commit(),
        "machine": machine_facts(),
        "versions": package_versions(),
    }


def _commit() -> str:
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{_git('rev-parse', '--short', 'HEAD') or 'unknown'}{' with changes' if changed else ''}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()
