"""What ONNX Runtime says about a loaded decoder, whichever way it keeps its cache."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from hlap_export.engines.base import KVLayer

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}


class LoadedDecoder:
    """A session of ONNX Runtime and the facts of its graph; a context manager that frees it.

    Args:
        session: an `InferenceSession` of a graph that keeps the I/O contract.
        provider: the execution provider that runs it.
        threads: of one operator.
    """

    def __init__(self, session: Any, *, provider: str, threads: int) -> None:
        self._session: Any = session
        self.provider = provider
        self.threads = threads
        caches = [node for node in session.get_inputs() if node.name.startswith("past_key_values.")]
        self.kv_layers = tuple(_kv_layer(node) for node in caches if node.name.endswith(".key"))
        self._past_names = tuple(
            f"past_key_values.{layer.index}.{part}" for layer in self.kv_layers for part in ("key", "value")
        )
        self._present_names = tuple(name.replace("past_key_values", "present") for name in self._past_names)
        self.dtype = _DTYPES[caches[0].type]
        self.vocab_size = int(session.get_outputs()[0].shape[-1])

    def close(self) -> None:
        """Free the weights and the arena."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _cache_shapes(self, batch: int, length: int) -> list[tuple[int, int, int, int]]:
        """The shape [B, K, length, E] of every cached tensor, in the order of the graph."""
        return [(batch, layer.num_kv_heads, length, layer.head_dim) for layer in self.kv_layers for _ in range(2)]


def _kv_layer(node: Any) -> KVLayer:
    """The static part of `past_key_values.{i}.key` [batch, K, past_sequence, E]."""
    _, num_kv_heads, _, head_dim = node.shape
    return KVLayer(index=int(node.name.split(".")[1]), num_kv_heads=int(num_kv_heads), head_dim=int(head_dim))
