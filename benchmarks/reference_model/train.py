"""Train the reference model: a small Llama with grouped-query attention, on two CPU cores.

    python -m benchmarks.reference_model.corpus --out build/corpus
    python -m benchmarks.reference_model.train --corpus build/corpus --out build/reference_model

Hidden matrices are trained by Muon (orthogonalised momentum), embeddings, head and norms by AdamW; the learning
rate warms up, stays, and falls linearly to zero. Batches are halved when it starts to fall; windows are short (256
tokens) until the last steps, because attention over 512 would be half of the cost.

Interrupted training resumes from its last checkpoint; the order of the corpus depends only on the seed. `loss.csv` is
the curve: step, tokens, window, learning-rate scale, training loss and (every `--eval-every` steps) held-out loss in
nats per token.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
VOCABULARY = 2048
PLATEAU_BATCH_TOKENS = 8192
DECAY_BATCH_TOKENS = 4096
SHORT_WINDOW = 256
LONG_WINDOW = 512


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, plateau, linear decay to zero (all in steps)."""

    warmup: int = 100
    plateau: int = 600
    decay: int = 2000
    long_windows: int = 400

    @property
    def steps(self) -> int:
        return self.warmup + self.plateau + self.decay

    def scale(self, step: int) -> float:
        """The factor on both learning rates at `step`, in [0, 1]."""
        return min((step + 1) / self.warmup, 1.0, (self.steps - step) / self.decay)

    def window(self, step: int) -> int:
        """Tokens in one training window at `step`."""
        return SHORT_WINDOW if step < self.steps - self.long_windows else LONG_WINDOW

    def batch_tokens(self, step: int) -> int:
        """Tokens in the batch at `step`."""
        return PLATEAU_BATCH_TOKENS if step < self.warmup + self.plateau else DECAY_BATCH_TOKENS

    def tokens_seen(self, steps: int) -> int:
        """Tokens in the first `steps` batches."""
        return sum(self.batch_tokens(step) for step in range(steps))


def model_config() -> LlamaConfig:
    """12 layers x 128: 8 query heads in 2 KV groups of head_dim 16."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10_000.0,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; `<|endoftext|>` separates documents and serves as BOS, EOS and padding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> torch.Tensor:
    """All documents as one int64 stream, each preceded by `<|endoftext|>`."""
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    return torch.tensor([token for ids in encoded for token in [tokenizer.eos_token_id, *ids]])


def batches(stream: torch.Tensor, schedule: Schedule, seed: int) -> Iterator[torch.Tensor]:
    """One [windows, window + 1] batch a step: each epoch shifts the grid, then visits every window once."""
    generator = torch.Generator().manual_seed(seed)
    order, windows, window = torch.empty(0, dtype=torch.int64), stream[:0], 0
    for step in range(schedule.steps):
        per_batch = schedule.batch_tokens(step) // schedule.window(step)
        if window != schedule.window(step) or len(order) < per_batch:
            window = schedule.window(step)
            shift = int(torch.randint(window, (1,), generator=generator))
            windows = stream[shift:].unfold(0, window + 1, window)
            order = torch.randperm(len(windows), generator=generator)
        yield windows[order[:per_batch]]
        order = order[per_batch:]


def loss_nats(model: torch.nn.Module, batch: torch.Tensor, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Mean next-token cross-entropy of [batch, window + 1] tokens, in nats per token."""
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, stream: torch.Tensor, window: int) -> float:
    """Mean loss over all disjoint windows of a held-out stream, in float32."""
    windows = stream.unfold(0, window + 1, window)
    total = sum(float(loss_nats(model, batch, torch.float32)) * len(batch) for batch in windows.split(16))
    return total / len(windows)


def unigram_loss(training: torch.Tensor, held_out: torch.Tensor) -> float:
    """Cross-entropy (nats per token) of the training text's add-one unigram distribution on held-out text."""
    counts = Counter(training.tolist())
    total = len(training) + VOCABULARY
    return -sum(math.log((counts[token] + 1) / total) for token in held_out.tolist()) / len(held_out)


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the decoder layers' matrices, AdamW for everything else."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--eval-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)

    documents = (arguments.corpus / "train.txt").read_text(encoding="utf-8").split("\0")
    tokenizer = train_tokenizer(documents)
    training = encode(tokenizer, documents)
    held_out = {
        name: encode(tokenizer, [(arguments.corpus / f"{name}.txt").read_text(encoding="utf-8")])
        for name in ("calibration", "evaluation", "second")
    }
    print(f"{len(training) / 1e6:.2f} M training tokens", flush=True)

    model = LlamaForCausalLM(model_config())
    print(f"{model.num_parameters() / 1e6:.2f} M parameters", flush=True)
    schedule = Schedule()
    steppers = optimizers(model)
    base_rates = [group["lr"] for stepper in steppers for group in stepper.param_groups]

    checkpoint_path = arguments.out / "training_state.pt"
    first_step = 0
    if checkpoint_path.exists():
        state = torch.load(checkpoint_path, weights_only=True)
        model.load_state_dict(state["model"])
        for stepper, saved in zip(steppers, state["optimizers"], strict=True):
            stepper.load_state_dict(saved)
        first_step = state["step"]

    started = time.perf_counter()
    with (arguments.out / "loss.csv").open("a", newline="") as file:
        curve = csv.writer(file)
        if first_step == 0:
            curve.writerow(["step", "tokens", "window", "lr_scale", "training_loss_nats", "evaluation_loss_nats"])
        for step, batch in enumerate(batches(training, schedule, arguments.seed)):
            if step < first_step:
                continue
            groups = [group for stepper in steppers for group in stepper.param_groups]
            for group, rate in zip(groups, base_rates, strict=True):
                group["lr"] = rate * schedule.scale(step)
            loss = loss_nats(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for stepper in steppers:
                stepper.step()
                stepper.zero_grad(set_to_none=True)

            done = step + 1
            evaluate = done % arguments.eval_every == 0 or done == schedule.steps
            if done % 25 == 0 or evaluate:
                window = schedule.window(step)
                evaluation = held_out_loss(model, held_out["evaluation"], window) if evaluate else None
                row = [done, schedule.tokens_seen(done), window, f"{schedule.scale(step):.4f}", f"{loss.item():.4f}"]
                curve.writerow([*row, "" if evaluation is None else f"{evaluation:.4f}"])
                file.flush()
                tokens = schedule.tokens_seen(done) - schedule.tokens_seen(first_step)
                rate = tokens / (time.perf_counter() - started)
                print(f"{done:5d} loss {loss.item():.3f} eval {evaluation} {rate:,.0f} tokens/s", flush=True)
            if evaluate:
                state = {"model": model.state_dict(), "optimizers": [s.state_dict() for s in steppers], "step": done}
                torch.save(state, checkpoint_path)

    released = model.to(torch.bfloat16)
    released.save_pretrained(arguments.out / "model")
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(arguments.out / "model")
    facts = {
        "parameters": model.num_parameters(),
        "training_tokens_seen": schedule.tokens_seen(schedule.steps),
        "corpus_tokens": len(training),
        "held_out": {
            name: {
                "tokens": len(tokens),
                "perplexity_bfloat16_weights": math.exp(held_out_loss(released.float(), tokens, SHORT_WINDOW)),
                "perplexity_unigram": math.exp(unigram_loss(training, tokens)),
            }
            for name, tokens in held_out.items()
        },
    }
    (arguments.out / "facts.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
