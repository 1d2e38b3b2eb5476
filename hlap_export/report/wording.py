"""Numbers and layers in words, the same on the screen and in the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hlap_export.report.summary import Check, Extrapolated, Latency, LayerRow, Perplexity, Phase, Size, Summary, Text

SYMBOLS = {"full": "●", "value_only": "◐", "linear": "◆", "skip": "○"}
QUANTISED = ("int8", "int4")
"""Their engines aren't meant to compute what PyTorch does: rounding weights costs what perplexity tells."""

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", " k", " M", " G")


def in_bytes(count: float) -> str:
    """A size in binary units: 1536 -> "1.5 KiB"."""
    return _scaled(count, 1024, _BINARY, " ")


def in_numbers(count: float) -> str:
    """A count in decimal units: 2_410_000 -> "2.41 M"."""
    return _scaled(count, 1000, _DECIMAL, "")


def _scaled(count: float, base: int, units: tuple[str, ...], space: str) -> str:
    power = 0
    while abs(count) >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    digits = 0 if power == 0 else 2 if count < 100 else 1
    return f"{count:.{digits}f}{space}{units[power]}"


def of_size(size: Size, count: int) -> str:
    return in_bytes(count) if size.unit == "bytes" else in_numbers(count)


def percent(ratio: float) -> str:
    """A signed change with one decimal, with a real minus sign: -0.051 -> "−5.1 %"."""
    rounded = round(100 * ratio, 1)
    if rounded == 0:
        return "±0.0 %"
    return f"{'−' if rounded < 0 else '+'}{abs(rounded):.1f} %"


def percent_briefly(ratio: float) -> str:
    """The same beside an axis: 0.2 -> "+20 %"."""
    return percent(ratio).replace(".0 %", " %").replace("±", "")


def in_ms(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "–"
    return f"{milliseconds:.2f} ms" if milliseconds < 100 else f"{milliseconds:.0f} ms"


def in_rate(tokens_per_second: float | None) -> str:
    """New tokens per second: 838.4 -> "838", 41203 -> "41.2 k"."""
    if tokens_per_second is None:
        return "–"
    return in_numbers(tokens_per_second) if tokens_per_second >= 10_000 else f"{tokens_per_second:.3g}"


def in_tokens(count: float) -> str:
    """Tokens beside an axis: 2048 -> "2048", 131072 -> "128 Ki"."""
    whole = int(count)
    return f"{whole // 1024} Ki" if whole >= 8192 and whole % 1024 == 0 else str(whole)


def of_step(phase: Phase, num_tokens: int, batch: int) -> str:
    """A step: "prefill of 64 tokens", and with four rows at once "4 × prefill of 64"."""
    step = f"{phase} {'of' if phase == 'prefill' else 'after'} {num_tokens}"
    return f"{step} tokens" if batch == 1 else f"{batch} × {step}"


def of_row(row: Latency | Extrapolated) -> str:
    """The step that a row is about."""
    return of_step(row.phase if isinstance(row, Latency) else "decode", row.num_tokens, row.batch)


def of_step_briefly(phase: Phase, num_tokens: int, batch: int) -> str:
    """The same where there is little room: "prefill 64", "4 × decode 2048"."""
    step = f"{phase} {in_tokens(num_tokens)}"
    return step if batch == 1 else f"{batch} × {step}"


def in_times(speedup: float | None) -> str:
    """How many times faster: 1.2 -> "×1.20"."""
    return "–" if speedup is None else f"×{speedup:.2f}"


def of_speedup(row: Latency | Extrapolated) -> str:
    """How many times faster, with the digits that its interval leaves: "×1.29" or "×1.3".

    Never without the tenths: "×1" would say of 1.21 (1.17 to 2.88) that nothing is gained.
    """
    half = round((row.speedup_high - row.speedup_low) / 2, 6)
    return f"×{row.speedup:.{2 if half <= 0.05 else 1}f}"


def of_interval(row: Latency | Extrapolated) -> str:
    """Where a speedup lies with 95 % confidence; a star where the row isn't to be trusted to its last digit."""
    return f"{row.speedup_low:.2f} to {row.speedup_high:.2f}{' *' if isinstance(row, Latency) and row.noise else ''}"


def doubts(*, has_stars: bool, disturbed: tuple[str, ...]) -> list[str]:
    """Why not to trust what was timed: a row's own spread, which stars mark, or what else the machine did."""
    stars = ["* repeats of this row spread widely: don't trust its last digit"] if has_stars else []
    return stars + [f"the machine was busy: {reason}" for reason in disturbed]


STEPS = "A prefill is the time to the first token, a decode step that of each further one."
LEAST = "At least: what a step's arithmetic and memory traffic need on this machine."


def in_threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def of_text(text: Text) -> str:
    return f"{text.name}, {text.num_windows} windows of {text.window_length} tokens"


def layer_strip(layers: tuple[LayerRow, ...]) -> str:
    """One symbol per layer, the embedding's side first; a full layer with fewer heads is hatched."""
    thinner = _with_fewer_heads(layers)
    return "".join("◍" if row.layer in thinner else SYMBOLS[row.attention] for row in layers)


def layer_legend(layers: tuple[LayerRow, ...]) -> str:
    """What the strip's symbols mean, only those that occur."""
    strip = layer_strip(layers)
    meanings = {"●": "attention", "◍": "fewer heads", "◐": "value only", "◆": "linear", "○": "no attention"}
    return "  ".join(f"{symbol} {meaning}" for symbol, meaning in meanings.items() if symbol in strip)


def layer_changes(layers: tuple[LayerRow, ...]) -> list[str]:
    """One phrase per layer that lost something, "layer 10: alpha 0.3"; the headline counts what is only fitted anew."""
    thinner = _with_fewer_heads(layers)
    changes = {row.layer: _change(row, is_thinner=row.layer in thinner) for row in layers if row.is_pruned}
    return [f"layer {layer}: {said}" for layer, said in changes.items() if said]


def _with_fewer_heads(layers: tuple[LayerRow, ...]) -> set[int]:
    """The layers whose attention is full but has fewer heads than another's."""
    most = max(row.num_heads for row in layers)
    return {row.layer for row in layers if row.attention == "full" and row.num_heads < most}


def _change(row: LayerRow, *, is_thinner: bool) -> str:
    said: list[str] = []
    if row.attention != "full":
        said.append(row.attention.replace("_", " ") if row.alpha is None else f"alpha {row.alpha:g}")
    elif is_thinner:
        said.append(f"{row.num_heads} query and {row.num_kv_heads} KV heads")
    if row.mlp == "skip":
        said.append("no MLP")
    return ", ".join(said)


def headline(summary: Summary) -> str:
    """The outcome in one sentence."""
    layers = summary.layers
    counts = (
        (sum(row.attention != "full" for row in layers), "{} of {} layers lose their attention"),
        (len(_with_fewer_heads(layers)), "{} keep{s} fewer heads"),
        (sum(row.mlp == "skip" for row in layers), "{} lose{s} the MLP"),
        (sum(row.mlp == "refit" for row in layers), "{} get{s} the MLP fitted anew"),
    )
    clauses = [clause.format(n, len(layers), s="s" if n == 1 else "") for n, clause in counts if n]
    return _listed(clauses) if clauses else "nothing was pruned"


def _listed(clauses: list[str]) -> str:
    """Clauses in one sentence: "a", "a and b", "a, b and c"."""
    *first, last = clauses
    return f"{', '.join(first)} and {last}" if first else last


def verdict(summary: Summary) -> str:
    """Whether the engine computes what the PyTorch model computes."""
    failed = [check for check in summary.checks if not check.passed]
    if failed:
        where = [summary.fault] if summary.fault else []
        return "not verified: " + "; ".join([*(f"{check.name} {of_check(check)}" for check in failed), *where])
    count = len(summary.checks)
    same = f"within the bounds of {summary.dtype}" if summary.dtype in QUANTISED else "same as PyTorch"
    place = " in ONNX Runtime" if summary.measured_instead else ""
    said = f"verified{place}: {same} in {count} of {count} checks"
    logits = [check for check in summary.checks if "logits" in check.name]
    if logits:
        worst = max(logits, key=lambda check: check.value / check.bound)
        said += f", logit error {in_digits(worst.value)} (bound {in_digits(worst.bound)})"
    return f"{said}, greedy {100 * summary.greedy_agreement:.4g} %"


def of_check(check: Check) -> str:
    """A check's value beside its bound: "2.1e-07 (at most 1e-04)"."""
    return f"{in_digits(check.value)} ({check.rule} {in_digits(check.bound)})"


def in_digits(value: float) -> str:
    """A small number in scientific form, others plainly: 2.1e-07, 0.99."""
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:.4g}"


def alternatives(perplexity: Perplexity) -> list[tuple[str, float]]:
    """The dense model, this plan, and the same layers with alpha 1 and 0, as far as they were measured."""
    rows = (
        ("dense", perplexity.dense),
        ("this plan", perplexity.pruned),
        ("every alpha 1", perplexity.all_ones),
        ("attention dropped", perplexity.all_dropped),
    )
    return [(name, value) for name, value in rows if value is not None]


def of_increase(row: Perplexity) -> str:
    """The interval of a perplexity's change; nothing where it wasn't estimated."""
    if row.increase_ratio_low is None or row.increase_ratio_high is None:
        return ""
    return f"{percent(row.increase_ratio_low).removesuffix(' %')} to {percent(row.increase_ratio_high)}"


def picture_key(layers: tuple[LayerRow, ...]) -> list[tuple[str, str]]:
    """What the colours of the layers' picture mean, only those that occur: style and meaning."""
    kinds, mlps = {row.attention for row in layers}, {row.mlp for row in layers}
    rows = (
        ("full", "attention", True),
        ("value", "value only: no queries, keys or cache", "value_only" in kinds),
        ("linear", "fitted linear map", "linear" in kinds or "refit" in mlps),
        ("mlp", "MLP", mlps != {"keep"}),
        ("none", "removed", "skip" in kinds | mlps or bool(_with_fewer_heads(layers))),
        ("alpha", "alpha, what is left of the attention's output", any(row.alpha is not None for row in layers)),
    )
    return [(style, meaning) for style, meaning, occurs in rows if occurs]


def machine_facts(summary: Summary) -> list[tuple[str, str]]:
    """The machine, how it was while it timed, the threads and the versions, a row each."""
    facts = {**summary.machine, **summary.conditions}
    rows = [_named_fact(name, value) for name, value in facts.items()]
    rows.append(("threads", str(summary.threads)))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items())))
    return rows


def _named_fact(name: str, value: Any) -> tuple[str, str]:
    """A fact in words, its unit taken from its name."""
    suffix = next((suffix for suffix in UNITS if name.endswith(suffix)), "")
    said = UNITS[suffix](value) if suffix and isinstance(value, int | float) else _plainly(value)
    return LABELS.get(name) or name.removesuffix(suffix).replace("_", " "), said


def _plainly(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


LABELS = {
    "flops_per_second": "float32 matrix products",
    "read_bytes_per_second": "reads from memory",
    "other_cpu_ratio": "taken by other processes",
    "stolen_cpu_ratio": "taken by other machines",
}
UNITS: dict[str, Callable[[float], str]] = {
    "_bytes_per_second": lambda value: f"{value / 1e9:.1f} GB/s",
    "flops_per_second": lambda value: f"{value / 1e9:.1f} GFLOP/s",
    "_bytes": in_bytes,
    "_mhz": lambda value: f"{value:.0f} MHz",
    "_watts": lambda value: f"{value:.0f} W",
    "_celsius": lambda value: f"{value:.0f} °C",
    "_cpu_ratio": lambda value: f"{100 * value:.1f} % of the processors' time",
}
