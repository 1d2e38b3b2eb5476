"""A page in headless Chromium: what it draws, how wide it gets, what it complains of."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Labels may touch, for their boxes are taller than their letters; so many units of both are really overlapping.
TOUCHING = 3.0
SCRIPT = """
const frame = document.getElementById("page");
frame.addEventListener("load", () => {
  const page = frame.contentDocument, seen = {};
  seen.scrollWidth = page.documentElement.scrollWidth;
  seen.background = getComputedStyle(page.body).backgroundColor;
  seen.pictures = [...page.querySelectorAll("svg")].map((svg) => {
    const box = svg.getBoundingClientRect();
    const inside = (b) => b.left >= box.left - 1 && b.right <= box.right + 1
      && b.top >= box.top - 1 && b.bottom <= box.bottom + 1;
    const labels = [...svg.querySelectorAll("text")];
    const texts = labels.map((t) => ({ words: t.textContent, box: t.getBoundingClientRect() }));
    const overlapping = [];
    texts.forEach((a, i) => texts.slice(i + 1).forEach((b) => {
      const across = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const down = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      if (across > TOUCHING && down > TOUCHING) overlapping.push(a.words + " | " + b.words);
    }));
    return {
      label: svg.getAttribute("aria-label"), width: box.width, height: box.height, left: box.left, right: box.right,
      overlapping, outside: texts.filter((t) => !inside(t.box)).map((t) => t.words),
      invisible: [...svg.querySelectorAll("line, polyline, rect, circle")].filter((shape) => {
        const style = getComputedStyle(shape);
        return style.fill === "none" && style.stroke === "none";
      }).length,
    };
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
"""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a browser made of a page."""

    scroll_width: float
    background: str
    pictures: list[dict[str, Any]]
    complaints: list[str]


def open_page(page: str, folder: Path, *, width: int, dark: bool = False) -> Seen:
    """Open a page in a frame of this width (a window can't be as narrow as a phone); skips where no browser is."""
    if find_browser() is None:
        pytest.skip(f"no browser among {', '.join(NAMES)} to look at the page with")
    outer = folder / "outer.html"
    frame = f'<iframe id="page" width="{width}" height="4000" style="border: 0" srcdoc="{html.escape(page)}"></iframe>'
    script = f"<script>{SCRIPT.replace('TOUCHING', str(TOUCHING))}</script>"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><pre id="seen"></pre>{frame}{script}',
        encoding="utf-8",
    )
    done = _run(outer, ["--dump-dom", "--enable-logging=stderr", "--virtual-time-budget=5000"], dark=dark)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page was never loaded: {done.stderr[-2000:]}"
    seen = json.loads(html.unescape(found[1]))
    return Seen(
        scroll_width=seen["scrollWidth"],
        background=seen["background"],
        pictures=seen["pictures"],
        complaints=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
    )


def take_picture(page: Path, picture: Path, *, size: tuple[int, int], dark: bool = False) -> None:
    """Write a PNG of a page's top, so many pixels wide and high."""
    size_said = f"--window-size={size[0]},{size[1]}"
    _run(page, [f"--screenshot={picture}", size_said, "--hide-scrollbars"], dark=dark)


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def _run(page: Path, options: list[str], *, dark: bool) -> subprocess.CompletedProcess[str]:
    browser = find_browser()
    assert browser is not None
    command = [browser, "--headless", "--disable-gpu", "--disable-dev-shm-usage", *options]
    command += ["--no-sandbox"] if sys.platform == "linux" else []
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    with tempfile.TemporaryDirectory() as profile:
        command += [f"--user-data-dir={profile}", page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
