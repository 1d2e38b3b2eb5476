"""Tell a person what is going on, on stderr: bars in a terminal, plain lines elsewhere.

Stages don't import this: they take a callback `on_progress(done, total)` and call it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta

from rich import filesize
from rich import progress as bars
from rich.console import Console
from rich.text import Text

Step = Callable[[int, int], None]


class Progress:
    """Announces stages, counts their steps, and says how long each took.

    Args:
        console: where to write; by default stderr.
        quiet: say nothing at all.
    """

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self._console = console or Console(file=sys.stderr, stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet

    def note(self, line: str) -> None:
        """One line about something that took no time."""
        if not self._quiet:
            self._console.print(f"  {line}", style="dim", markup=False)

    @contextmanager
    def stage(self, name: str, *, in_bytes: bool = False) -> Generator[Step]:
        """Show `name` while the block runs, and its duration afterwards.

        Args:
            name: of the stage.
            in_bytes: whether its steps are bytes, and shown as such.

        Yields:
            The callback that tells how far it is: (steps done, steps in all).
        """
        if self._quiet:
            yield lambda done, total: None
            return
        started = time.perf_counter()
        if self._console.is_terminal:
            with self._new_bar() as bar:
                task = bar.add_task(name, total=None, in_bytes=in_bytes)
                yield lambda done, total: bar.update(task, completed=done, total=total)
        else:
            self._console.print(f"  {name} ...", markup=False)
            yield lambda done, total: None
        self._console.print(f"  {name}: {time.perf_counter() - started:.1f} s", markup=False)

    def _new_bar(self) -> bars.Progress:
        return bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TimeElapsedColumn(),
            _StepsLeft(),
            console=self._console,
            transient=True,
        )


class _StepsLeft(bars.ProgressColumn):
    """Steps done and the time that the rest will take; nothing for a stage that doesn't count steps."""

    def render(self, task: bars.Task) -> Text:
        """What rich asks a column for."""
        if task.total is None:
            return Text()
        remaining = "" if task.time_remaining is None else f", {timedelta(seconds=int(task.time_remaining))} left"
        shown = filesize.decimal if task.fields["in_bytes"] else str
        return Text(f"{shown(int(task.completed))} of {shown(int(task.total))}{remaining}", style="dim")
