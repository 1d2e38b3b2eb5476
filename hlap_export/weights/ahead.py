"""Make the next while this one is used: reading, rearranging and writing of weights at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, none of them None; while the caller has one, the next is being made on a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="weights") as thread:
        coming = thread.submit(next, items, None)
        while (made := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield made
