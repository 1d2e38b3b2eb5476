"""The README's first screen, from a finished run: `python -m tests.report.redraw demo` (make readme)."""

from __future__ import annotations

import io
import re
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from PIL import Image
from rich.console import Console

from hlap_export.report.html import html_report
from hlap_export.report.screen import render_summary
from hlap_export.report.summary import SUMMARY, Summary, read_summary
from tests.report.browser import find_browser, take_picture

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks/results"
STORED = re.compile(r"benchmarks/results/\S+_demo\.json")
BLOCK = re.compile(r"(?<=<!-- demo -->\n```\n).*?(?=```\n<!-- /demo -->)", re.DOTALL)
PICTURES = {"light": RESULTS / "report_light.png", "dark": RESULTS / "report_dark.png"}
PICTURE_SIZE = (960, 1640)


def on_screen(summary: Summary) -> str:
    """What the run prints at its end."""
    drawn = io.StringIO()
    Console(file=drawn, width=100, color_system=None).print(render_summary(summary))
    return "".join(f"{line.rstrip()}\n" for line in drawn.getvalue().splitlines())


def main(run: Path) -> None:
    summary = read_summary(run)
    made = datetime.fromtimestamp((run / SUMMARY).stat().st_mtime, UTC)
    stored = RESULTS / f"{made:%Y-%m-%d}_demo.json"
    if stored.exists():  # a stored result is never edited
        stored = RESULTS / f"{made:%Y-%m-%d_%H%M}_demo.json"
    shutil.copyfile(run / SUMMARY, stored)
    text = STORED.sub(stored.relative_to(ROOT).as_posix(), README.read_text(encoding="utf-8"))
    README.write_text(BLOCK.sub(lambda _: on_screen(summary), text), encoding="utf-8")
    if find_browser() is None:
        print("no browser here: the pictures stay as they were")
        return
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(html_report(summary), encoding="utf-8")
        for scheme, picture in PICTURES.items():
            take_picture(page, picture, size=PICTURE_SIZE, dark=scheme == "dark")
            Image.open(picture).convert("RGB").quantize(256).save(picture, optimize=True)  # few colours, half the size


if __name__ == "__main__":
    main(Path(sys.argv[1]))
