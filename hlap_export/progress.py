"""Tell a person what is going on, on stderr: bars in a terminal, plain lines elsewhere.

Stages don't import this: they take a callback `on_progress(done, total)` and call it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich import progress as bars
from rich.console import Console


class Progress:
    """Announces stages, counts their steps, and says how long each took.

    Args:
        console: where to write; by default stderr.
        quiet: say nothing at all.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(file=sys.stderr, stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._bar: bars.Progress | None = None
        self._task: bars.TaskID | None = None

    def note(self, line: str) -> None:
        """One line about something that took no time."""
        if not self._quiet:
            self._console.print(f"  {line}", style="dim", markup=False)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Show `name` while the block runs, and its duration afterwards."""
        if self._quiet:
            yield
            return
        started = time.perf_counter()
        if self._console.is_terminal:
            with self._new_bar() as self._bar:
                self._task = self._bar.add_task(name, total=None)
                yield
            self._bar = self._task = None
        else:
            self._console.print(f"  {name} ...", markup=False)
            yield
        self._console.print(f"  {name}: {time.perf_counter() - started:.1f} s", markup=False)

    def step(self, done: int, total: int) -> None:
        """The running stage has done `done` of `total` steps; stages call this as their `on_progress`."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def _new_bar(self) -> bars.Progress:
        return bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.completed:.0f}/{task.total}", style="dim"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left", style="dim"),
            bars.TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
