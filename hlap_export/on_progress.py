"""The callback by which a long stage says how far it is: `on_progress(steps done, steps in all)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

OnProgress = Callable[[int, int], None]
Result = TypeVar("Result")


def ignore_progress(done: int, total: int) -> None:
    """Tell nobody."""


class Steps:
    """Counts finished steps, of equal worth, for the callback."""

    def __init__(self, total: int, on_progress: OnProgress) -> None:
        self._done, self._total, self._on_progress = 0, total, on_progress

    def expect(self, count: int) -> None:
        """So many steps more than was said at first."""
        self._total += count

    def advance(self, count: int = 1) -> None:
        self._done += count
        self._on_progress(self._done, self._total)

    def then(self, result: Result) -> Result:
        """Count a step whose result is at hand, and pass it on."""
        self.advance()
        return result
