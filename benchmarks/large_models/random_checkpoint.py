"""Write a sharded Hugging Face checkpoint of a real model's shape with random bfloat16 weights.

    python -m benchmarks.large_models.random_checkpoint --shape llama-3.1-8b --out l8b

Time and memory of pruning and exporting depend on shapes alone, so nothing need be downloaded: 16 GB for the 8B shape
take about two minutes on two cores. The same seed gives the same bytes. The config is as on the hub (with the RoPE keys
that other exporters need); the tokenizer is the reference model's, whose ids lie in every vocabulary.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from hlap_export import reference_model
from hlap_export.checkpoint.loading import expected_shapes
from hlap_export.checkpoint.shards import OutputTensor, Sink, write_shard

BLOCK_VALUES = 4 * 2**20
THREADS = len(os.sched_getaffinity(0))

_LLAMA_3: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_key_value_heads": 8,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 128256,
}


def _rope_scaling(factor: float) -> dict[str, Any]:
    return {
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


# The first two are the shapes of the models on the hub; the small ones are for trying a benchmark out.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _LLAMA_3
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "rope_scaling": _rope_scaling(8.0),
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": _LLAMA_3
    | {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "rope_scaling": _rope_scaling(32.0),
        "tie_word_embeddings": True,
    },
    "llama-300m": _LLAMA_3
    | {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "llama-30m": _LLAMA_3
    | {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
    },
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomWeights:
    """A tensor that is made block by block while it is written; blocks have seeds of their own, so threads share them.

    Attributes:
        key: (seed, number of the tensor).
        std: standard deviation; 0 makes a norm's gain, all ones.
    """

    key: tuple[int, int]
    num_values: int
    std: float
    threads: ThreadPoolExecutor

    def write(self, file: Sink) -> None:
        blocks = iter(range(-(-self.num_values // BLOCK_VALUES)))
        waiting: deque[Future[torch.Tensor]] = deque()
        for block in blocks:
            waiting.append(self.threads.submit(self._block, block))
            if len(waiting) > 2 * THREADS:
                file.write(_bytes(waiting.popleft().result()))
        for made in waiting:
            file.write(_bytes(made.result()))

    def _block(self, number: int) -> torch.Tensor:
        num_values = min(BLOCK_VALUES, self.num_values - number * BLOCK_VALUES)
        if not self.std:
            return torch.ones(num_values, dtype=torch.bfloat16)
        # Hashed, because torch's generator takes no more than 32 bits of a seed.
        digest = hashlib.sha256(str((*self.key, number)).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))
        return torch.empty(num_values, dtype=torch.bfloat16).normal_(std=self.std, generator=generator)


def _bytes(values: torch.Tensor) -> memoryview:
    return values.view(torch.uint8).numpy().data


def write_random_checkpoint(
    folder: Path, config: dict[str, Any], *, seed: int = 0, shard_bytes: int = 4 * 10**9
) -> Path:
    """Write config.json, tokenizer and shards of at most `shard_bytes` (or one tensor) into a new folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(reference_model.path() / name, folder / name)
    shapes = expected_shapes(folder)
    if config["tie_word_embeddings"]:
        del shapes["lm_head.weight"]
    with ThreadPoolExecutor(THREADS) as threads:
        tensors = [_random_tensor(name, shape, (seed, at), threads) for at, (name, shape) in enumerate(shapes.items())]
        shards = list(_packed(tensors, shard_bytes))
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            with (folder / name).open("wb") as file:
                weight_map |= {tensor.name: name for tensor in write_shard(file, shard, {"format": "pt"})}
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(tensor.size_bytes for tensor in tensors)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return folder


def _random_tensor(
    name: str, shape: tuple[int, ...], key: tuple[int, int], threads: ThreadPoolExecutor
) -> OutputTensor:
    std = 0.0 if len(shape) == 1 else shape[-1] ** -0.5
    weights = RandomWeights(key=key, num_values=prod(shape), std=std, threads=threads)
    return OutputTensor(name=name, dtype="BF16", shape=shape, size_bytes=2 * prod(shape), data=weights)


def _packed(tensors: list[OutputTensor], shard_bytes: int) -> Iterator[list[OutputTensor]]:
    """Fill shards in order, none larger than `shard_bytes` unless a single tensor is."""
    shard: list[OutputTensor] = []
    for tensor in tensors:
        if shard and sum(held.size_bytes for held in shard) + tensor.size_bytes > shard_bytes:
            yield shard
            shard = []
        shard.append(tensor)
    yield shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--num-layers", type=int, help="instead of the shape's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-gb", type=float, default=4.0, help="in units of 10**9 bytes")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args()

    config = dict(SHAPES[arguments.shape])
    if arguments.num_layers:
        config["num_hidden_layers"] = arguments.num_layers
    started = time.perf_counter()
    write_random_checkpoint(arguments.out, config, seed=arguments.seed, shard_bytes=int(arguments.shard_gb * 10**9))
    seconds = time.perf_counter() - started
    size = sum(path.stat().st_size for path in arguments.out.iterdir())
    print(f"{arguments.out}: {size / 1e9:.2f} GB in {seconds:.0f} s ({size / 1e6 / seconds:.0f} MB/s)")


if __name__ == "__main__":
    main()
