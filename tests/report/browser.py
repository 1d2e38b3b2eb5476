"""A page in headless Chromium: what it draws, how wide it gets, what it complains of."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
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
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser among {', '.join(NAMES)} to look at the page with")
    outer = folder / "outer.html"
    frame = f'<iframe id="page" width="{width}" height="4000" style="border: 0" srcdoc="{html.escape(page)}"></iframe>'
    script = f"<script>{SCRIPT.replace('TOUCHING', str(TOUCHING))}</script>"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><pre id="seen"></pre>{frame}{script}',
        encoding="utf-8",
    )
    command = [browser, "--headless", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    command += ["--dump-dom", "--virtual-time-budget=5000", f"--user-data-dir={folder / 'profile'}"]
    command += ["--no-sandbox"] if sys.platform == "linux" else []
    command += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run([*command, outer.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<pre id="seen">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page was never loaded: {done.stderr[-2000:]}"
    seen = json.loads(html.unescape(found[1]))
    return Seen(
        scroll_width=seen["scrollWidth"],
        background=seen["background"],
        pictures=seen["pictures"],
        complaints=[line for line in done.stderr.splitlines() if "CONSOLE" in line],
    )
