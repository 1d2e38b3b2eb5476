"""What the steps need that run engines: verify, bench, eval, generate. Weights and cache must fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

from hlap_export.budget.engines import loaded_weights
from hlap_export.budget.needs import Needs, Term, Work
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.counting import (
    Model,
    embedding,
    kv_bytes_per_token,
    layer_values,
    num_weights,
    stored_bytes,
)
from hlap_export.evaluate.likelihood import LOGITS_BYTES
from hlap_export.report.wording import in_bytes

MIB = 2**20
FLOAT_BYTES = 4
ENGINE_LIBRARIES = Term(num_bytes=380 * MIB, why="Python, torch and ONNX Runtime")
REFERENCE_LIBRARIES = Term(num_bytes=480 * MIB, why="Python, torch, transformers and ONNX Runtime")

PARITY_TOKENS = 464  # three rows, prompts and steps together
ALONE_TOKENS = 2 * 48 + 128  # the first row again: its prompt whole and in chunks, its steps
LONGEST_CONTEXT, CONTEXT_STEPS = 2048, 16  # tokens of the long row, and those of its end that are compared
DECODE_STEPS = 2 * 128 + CONTEXT_STEPS
USABLE = 0.8  # of the memory that there is, beside logits and what a layer computes
PAIRS = 6  # timed pairs of a long case, and its first, which isn't counted
ROUNDS = 5  # of loading and timing
SECONDS_PER_CASE = 2.0  # that short cases are repeated for
ASKED_TOKENS = 1024  # of a task's question with its answer; which tasks ask longer ones isn't known beforehand


def verify_needs(
    reference: Model, candidate: Model, *, windows: int, window_length: int, room_bytes: int | None
) -> Needs:
    """Verify: the reference runs in float32, as much of it in memory as fits, and leaves its logits; then the engine.

    Args:
        reference: the checkpoint's model.
        candidate: the engine's.
        windows: of evaluation text.
        window_length: tokens in each.
        room_bytes: memory that the reference may use; None where that isn't known.
    """
    layout = reference.layout
    logits = layout.vocab_size * FLOAT_BYTES
    weights, context = stored_bytes(candidate), min(LONGEST_CONTEXT, layout.max_positions)
    kept = PARITY_TOKENS + CONTEXT_STEPS
    phases = (
        (_reference(layout, room_bytes),),
        (
            *loaded_weights(candidate, "the engine's weights"),
            Term(num_bytes=3 * window_length * logits, why=f"logits of {window_length} tokens, copied twice"),
            Term(num_bytes=kv_bytes_per_token(candidate) * max(context, window_length), why="its cache"),
        ),
    )
    largest = max(phases, key=lambda terms: sum(term.num_bytes for term in terms))
    tokens = 2 * (PARITY_TOKENS + context) + ALONE_TOKENS + 2 * windows * window_length
    return Needs(
        step="verify",
        memory=(
            REFERENCE_LIBRARIES,
            Term(num_bytes=kept * logits, why=f"the reference's logits of {kept} tokens"),
            *largest,
        ),
        work=(
            Work(kind="read", amount=3 * weights, why=f"read and load {in_bytes(3 * weights)}"),
            Work(kind="hash", amount=2 * weights, why="hash both engines"),
            Work(kind="multiply", amount=float(tokens * num_weights(layout)), why=f"{tokens} tokens through engines"),
            Work(kind="traverse", amount=DECODE_STEPS * weights, why=f"{DECODE_STEPS} decode steps"),
            Work(kind="wait", amount=3.0, why="start"),
        ),
        advice="verify an export with --dtype int8 or int4, use a machine with more memory, or raise --max-memory",
    )


def _reference(layout: ModelLayout, room_bytes: int | None) -> Term:
    """The reference's weights: all, or those that fit, but one layer at least."""
    whole = num_weights(layout) * FLOAT_BYTES
    usable = whole if room_bytes is None else USABLE * (room_bytes - REFERENCE_LIBRARIES.num_bytes)
    if whole <= usable:
        return Term(num_bytes=whole, why="the reference in float32")
    layer = max(layer_values(layout, each) for each in layout.layers) * FLOAT_BYTES
    return Term(num_bytes=max(layer, usable), why="the reference's layers in float32, as many as fit at a time")


def bench_needs(
    candidate: Model,
    baseline: Model,
    *,
    prompt_lengths: Sequence[int],
    context_lengths: Sequence[int],
    batches: Sequence[int] = (1,),
) -> Needs:
    """Bench: both engines are open at once, because they are timed in turn."""
    rows, largest = sum(batches), max(batches)
    prompt, context = largest * max(prompt_lengths, default=1), largest * max(context_lengths, default=1)
    logits = prompt * candidate.layout.vocab_size * FLOAT_BYTES
    engines = {"candidate": candidate, "baseline": baseline}
    weights = sum(stored_bytes(model) for model in engines.values())
    cached = max(prompt, context)
    multiplications = rows * sum(
        PAIRS * length * _multiplications_per_token(model, length)
        for model in engines.values()
        for length in prompt_lengths
    )
    steps = PAIRS * len(batches) * len(context_lengths)
    cached_bytes = sum(kv_bytes_per_token(model) for model in engines.values())
    read = steps * weights + PAIRS * rows * sum(context_lengths) * cached_bytes
    return Needs(
        step="bench",
        memory=(
            ENGINE_LIBRARIES,
            *(term for name, model in engines.items() for term in loaded_weights(model, f"the {name}'s weights")),
            # Without shared buffers a step writes a new cache beside the old one.
            *(
                Term(num_bytes=2 * cached * kv_bytes_per_token(model), why=f"its cache of {cached} tokens, twice")
                for model in engines.values()
            ),
            Term(num_bytes=2 * logits, why=f"logits of {prompt} tokens, twice"),
        ),
        work=(
            Work(kind="read", amount=(1 + ROUNDS) * weights, why=f"load {in_bytes(weights)} {1 + ROUNDS} times"),
            Work(kind="multiply", amount=float(multiplications), why=f"prefill of {_listed(prompt_lengths)} tokens"),
            Work(kind="traverse", amount=float(read), why=f"decode after {_listed(context_lengths)} tokens"),
            Work(
                kind="wait",
                amount=SECONDS_PER_CASE * len(batches) * (len(prompt_lengths) + len(context_lengths)),
                why="repeats",
            ),
        ),
        advice="bench exports with --dtype int8 or int4, take shorter lengths, or raise --max-memory",
    )


def evaluate_needs(engines: Sequence[Model], *, batch_size: int) -> Needs:
    """Eval: one engine after another; how long it takes depends on the tasks' questions, which aren't known yet."""
    tokens = min(ASKED_TOKENS, *(engine.layout.max_positions for engine in engines))
    rows = f"{batch_size} texts of {tokens} tokens"
    weights = sum(stored_bytes(engine) for engine in engines)
    largest = max(engines, key=stored_bytes)
    logits_bytes = tokens * largest.layout.vocab_size * FLOAT_BYTES
    return Needs(
        step="eval",
        memory=(
            ENGINE_LIBRARIES,
            *loaded_weights(largest, "the engine's weights"),
            Term(
                num_bytes=2 * batch_size * tokens * max(kv_bytes_per_token(engine) for engine in engines),
                why=f"the cache of {rows}, twice",
            ),
            Term(
                num_bytes=2 * max(logits_bytes, min(batch_size * logits_bytes, LOGITS_BYTES)),
                why=f"logits of at most {rows}, twice",
            ),
        ),
        work=(Work(kind="read", amount=weights, why=f"load {in_bytes(weights)}"),),
        advice="take a smaller --batch-size, evaluate an export with --dtype int8 or int4, or raise --max-memory",
    )


def generate_needs(engine: Model, *, max_new_tokens: int) -> Needs:
    """Generate: the engine is loaded, and its cache grows with each token; a prompt's part isn't known yet."""
    weights, tokens = stored_bytes(engine), min(max_new_tokens, engine.layout.max_positions)
    return Needs(
        step="generate",
        memory=(
            ENGINE_LIBRARIES,
            *loaded_weights(engine, "the engine's weights"),
            Term(num_bytes=2 * tokens * kv_bytes_per_token(engine), why=f"its cache of {tokens} new tokens, twice"),
        ),
        work=(Work(kind="read", amount=weights, why=f"load {in_bytes(weights)}"),),
        advice="take an export with --dtype int8 or int4, a machine with more memory, or raise --max-memory",
    )


def _multiplications_per_token(model: Model, length: int) -> float:
    """Every weight but the embedding once, and each query with the keys and values before it."""
    layout = model.layout
    weights = sum(layer_values(layout, layer) for layer in layout.layers) + embedding(layout).num_values
    scores = sum(length * layer.num_heads * layout.head_dim for layer in layout.cached_layers)
    return float(weights + scores)


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(str(length) for length in lengths)
