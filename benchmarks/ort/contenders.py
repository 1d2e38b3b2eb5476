"""Who is timed: engines of ours, graphs of other exporters in ONNX Runtime, and PyTorch. Each makes steps of batch 1.

A prefill starts from nothing and a decode step follows `num_tokens` random cached ones. Whatever a loop that generates
text would set up once (buffers, bindings) is set up before the step is timed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache

from hlap_export.bench.latency import Step
from hlap_export.bench.report import Phase
from hlap_export.bench.steps import decode_step, prefill_step
from hlap_export.checkpoint import ModelLayout
from hlap_export.engines import Session
from hlap_export.engines.ort import session_options

SEED = 0
CPU = "CPUExecutionProvider"


class Contender(Protocol):
    """A loaded model; what its steps return is for tests."""

    def step(self, phase: Phase, num_tokens: int) -> Step:
        """A prefill of `num_tokens`, or one token after as many, ready to run again and again."""
        ...


class OurEngine:
    """A session of ours.

    Args:
        session: it stays the caller's to close.
        all_logits: compute every token's logits in a prefill, as the other exporters' graphs do, and not the last one's
            alone, which is all that generation needs.
    """

    def __init__(self, session: Session, *, all_logits: bool = False) -> None:
        self._session, self._all_logits = session, all_logits

    def step(self, phase: Phase, num_tokens: int) -> Step:
        if phase == "decode":
            return decode_step(self._session, num_tokens, seed=SEED)
        if not self._all_logits:
            return prefill_step(self._session, num_tokens, seed=SEED)
        tokens = _tokens(self._session.vocab_size, num_tokens, past=0)
        empty = self._session.empty_cache(1, capacity=num_tokens)
        return lambda: self._session.run(*tokens, empty)


class ForeignGraph:
    """A graph with the ecosystem's input names, in a session like ours but optimised at load, as its users have it.

    Where its attention is GroupQueryAttention, past and present share one buffer, bound once; otherwise the graph
    concatenates. Tokens and logits are bound anew in each step, as a loop that generates text has to.

    Args:
        graph: the .onnx file.
        layout: of the model that it was exported from.
        threads: CPU threads of one operator.
    """

    def __init__(self, graph: Path, layout: ModelLayout, *, threads: int) -> None:
        options = session_options(threads=threads)
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=[CPU])
        self._layout = layout
        nodes = onnx.load(graph, load_external_data=False).graph.node
        self._shares_buffers = any(node.op_type == "GroupQueryAttention" for node in nodes)

    def step(self, phase: Phase, num_tokens: int) -> Step:
        new, past = (num_tokens, 0) if phase == "prefill" else (1, num_tokens)
        binding = self._session.io_binding()
        tokens = _tokens(self._layout.vocab_size, new, past=past)
        named = dict(zip(("input_ids", "attention_mask", "position_ids"), tokens, strict=True))
        inputs = [node.name for node in self._session.get_inputs()]
        fed = {name: array for name, array in named.items() if name in inputs}
        self._bind_cache(binding, [name for name in inputs if name not in named], new, past)
        logits = np.zeros((1, new, self._layout.vocab_size), np.float32)

        def run() -> object:
            for name, array in fed.items():
                binding.bind_ortvalue_input(name, _value(array))
            binding.bind_ortvalue_output("logits", _value(logits))
            self._session.run_with_iobinding(binding)
            return logits

        return run

    def _bind_cache(self, binding: Any, names: list[str], new: int, past: int) -> None:
        rows_for_new = ((0, 0), (0, 0), (0, new if self._shares_buffers else 0), (0, 0))
        for name, cached in zip(names, _in_input_order(names, _random_cache(self._layout, past)), strict=True):
            buffer = _value(np.pad(cached, rows_for_new))
            present = name.replace("past_key_values", "present")
            binding.bind_ortvalue_input(name, buffer)
            if self._shares_buffers:
                binding.bind_ortvalue_output(present, buffer)
            else:
                binding.bind_output(present, "cpu")


class TorchModel:
    """The checkpoint in transformers, float32, attention by PyTorch's scaled_dot_product_attention."""

    def __init__(self, checkpoint: Path, layout: ModelLayout, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self._layout = layout
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    def step(self, phase: Phase, num_tokens: int) -> Step:
        new, past = (num_tokens, 0) if phase == "prefill" else (1, num_tokens)
        ids = torch.from_numpy(_tokens(self._layout.vocab_size, new, past=past)[0])
        cached = self._cache(past) if past else None

        @torch.inference_mode()
        def run() -> object:
            cache = DynamicCache() if cached is None else cached
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if cached is not None:
                cached.crop(-1)
            return output.logits

        return run

    def _cache(self, length: int) -> DynamicCache:
        cache, arrays = DynamicCache(), _random_cache(self._layout, length)
        for layer in range(self._layout.num_layers):
            keys, values = (torch.from_numpy(array) for array in arrays[2 * layer : 2 * layer + 2])
            cache.update(keys, values, layer)
        return cache


def _tokens(vocab_size: int, new: int, *, past: int) -> tuple[Any, Any, Any]:
    """Ids [1, T], mask [1, S] and positions [1, T] of T new tokens after P past ones."""
    ids = np.random.default_rng(SEED).integers(0, vocab_size, (1, new), dtype=np.int64)
    return ids, np.ones((1, past + new), dtype=np.int64), np.arange(past, past + new, dtype=np.int64)[None]


def _random_cache(layout: ModelLayout, length: int) -> list[NDArray[np.float32]]:
    """Key, value, key, value, ... [1, K, P, E], the numbers that `hlap_export.bench` gives its engines."""
    generator = np.random.default_rng(SEED)
    shape = (1, layout.num_kv_heads, length, layout.head_dim)
    return [generator.standard_normal(shape, dtype=np.float32) for _ in range(2 * layout.num_layers)]


def _in_input_order(names: list[str], cache: list[Any]) -> list[Any]:
    """The arrays of `past_key_values.{layer}.key|value`, in whatever order the graph names them."""
    places = [name.split(".") for name in names]
    return [cache[2 * int(layer) + ("key", "value").index(part)] for _, layer, part in places]


def _value(array: Any) -> Any:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)
