from __future__ import annotations

from io import StringIO

from rich.console import Console

from hlap_export.progress import Progress


def said(*, terminal: bool, in_bytes: bool = False) -> str:
    file = StringIO()
    progress = Progress(Console(file=file, width=80, force_terminal=terminal, force_interactive=terminal))
    progress.note("plan.json: reused")
    with progress.stage("bench", in_bytes=in_bytes) as step:
        step(3_000_000, 8_000_000) if in_bytes else step(3, 8)
    return file.getvalue()


def test_in_a_pipe_there_are_plain_lines() -> None:
    lines = said(terminal=False).splitlines()
    assert lines[:2] == ["  plan.json: reused", "  bench ..."]
    assert lines[2].startswith("  bench: 0.")
    assert "\x1b" not in said(terminal=False)


def test_in_a_terminal_there_is_a_bar_with_the_steps() -> None:
    text = said(terminal=True)
    assert "━" in text
    assert "3 of 8" in text


def test_bytes_are_shown_in_their_units() -> None:
    assert "3.0 MB of 8.0 MB" in said(terminal=True, in_bytes=True)


def test_silence_is_silent() -> None:
    file = StringIO()
    progress = Progress(Console(file=file), quiet=True)
    progress.note("plan.json: reused")
    with progress.stage("bench") as step:
        step(3, 8)
    assert file.getvalue() == ""
