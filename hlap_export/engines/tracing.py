"""Look into an engine: what lies between its operators, for finding out where it goes wrong.

A backend that keeps a graph can hand out any value of it. One that compiles to something opaque can't, and has no
`Tracer`.

Shapes: B batch, T new tokens, S all tokens, N real tokens of one row, F features of a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from hlap_export.artifacts import read_manifest
from hlap_export.engines.base import Ints, KVCache, Session
from hlap_export.engines.build import usable_backend

Values = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphValue:
    """One output of an operator.

    Attributes:
        name: of the value.
        node: name of the operator's node, which begins with the module that it comes from.
        op_type: of the operator.
        index: which of its outputs.
        inputs: names of what the operator reads.
    """

    name: str
    node: str
    op_type: str
    index: int
    inputs: tuple[str, ...]

    @property
    def module(self) -> str:
        """Path of the module that the operator comes from, such as "model.layers.2.mlp.down_proj"."""
        return self.node.split("/")[0]


class TracedSession:
    """A session that also hands out values from inside its graph.

    Args:
        session: runs the graph.
        take: gives, and forgets, what the graph's runs since the last call recorded, name to [.., F].
        pads_right: whether the graph sees a shorter row's new tokens at the front, with padding behind them.
    """

    def __init__(
        self, session: Session, take: Callable[[], list[dict[str, NDArray[Any]]]], *, pads_right: bool = False
    ) -> None:
        self._session, self._take, self._pads_right = session, take, pads_right

    def empty_cache(self, batch: int, capacity: int) -> KVCache:
        """A cache of no tokens."""
        return self._session.empty_cache(batch, capacity)

    def run(
        self, input_ids: Ints, attention_mask: Ints, position_ids: Ints, past: KVCache
    ) -> tuple[list[dict[str, NDArray[np.float32]]], KVCache]:
        """Run a step as `Session.run` does.

        Returns:
            The values [N, F] of each row's new real tokens by name, "logits" among them, and the cache.
        """
        logits_BTV, cache = self._session.run(input_ids, attention_mask, position_ids, past)
        is_real = attention_mask[:, -input_ids.shape[1] :] != 0
        counts = np.count_nonzero(is_real, axis=1)
        front: NDArray[np.bool_] = np.arange(int(counts.max())) < counts[:, None]
        shown = front if self._pads_right else is_real
        rows = [{"logits": logits_TV[real_T]} for logits_TV, real_T in zip(logits_BTV, is_real, strict=True)]
        for name, parts in _by_name(self._take()).items():
            # A session runs all columns of all rows at once, or the real tokens alone, row by row.
            flat = np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts]).astype(np.float32)
            if len(flat) == shown.size:
                flat = flat[shown.reshape(-1)]
            if len(flat) == counts.sum():
                for row, part in zip(rows, np.split(flat, np.cumsum(counts)[:-1]), strict=True):
                    row[name] = part
        return rows, cache

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()


def _by_name(records: Sequence[dict[str, NDArray[Any]]]) -> dict[str, list[NDArray[Any]]]:
    names = [name for name, value in records[0].items() if value.ndim > 1] if records else []
    return {name: [record[name] for record in records] for name in names}


@runtime_checkable
class Tracer(Protocol):
    """What a backend offers beside `Backend` where its engines can be looked into."""

    def graph_values(self, engine: Path) -> tuple[GraphValue, ...]:
        """Every value of the engine's graph, in the order of computation."""
        ...

    def open_traced(self, engine: Path, names: Sequence[str], *, threads: int) -> TracedSession:
        """Load the engine so that it hands out the values of these names."""
        ...


def tracer_of(engine_dir: Path) -> Tracer | None:
    """The engine's backend, if it can be looked into."""
    backend = usable_backend(str(read_manifest(engine_dir, kind="engine").parameters.get("engine")))
    return backend if isinstance(backend, Tracer) else None
