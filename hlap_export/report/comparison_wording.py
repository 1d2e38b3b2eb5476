"""Compared engines in words, the same on the screen and on the page."""

from __future__ import annotations

from hlap_export.report import wording
from hlap_export.report.comparison import Comparison, Entry, Place, Step


def of_compared(step: Step) -> str:
    """What was timed: "decode after 2048 tokens"."""
    return wording.of_step(step.phase, step.num_tokens, step.batch)


def of_column(step: Step) -> str:
    """The heading of its times: "decode 2048"."""
    return wording.of_step_briefly(step.phase, step.num_tokens, step.batch)


def of_entry(entry: Entry) -> str:
    """The run that an engine comes from, or what the dense engine is: flavour and dtype."""
    if entry.kind == "pruned":
        return entry.run
    return f"dense {entry.flavour} {entry.dtype}"


def of_layers(entry: Entry) -> str:
    """How many layers a run changed."""
    return "–" if entry.kind == "dense" else f"{entry.num_changed_layers} of {entry.num_layers}"


def of_increase(entry: Entry) -> str:
    return "" if entry.kind == "dense" else wording.percent(entry.increase_ratio)


def of_time(place: Place, comparison: Comparison) -> str:
    """Milliseconds, or the share of the dense engine's time; a star on the front."""
    time = wording.in_ms(place.time) if comparison.time_in == "ms" else f"{100 * place.time:.1f} %"
    return f"{time} ★" if place.on_front else time


def places_of(comparison: Comparison, entry: Entry) -> list[Place]:
    """Where an engine stands, step by step."""
    return [place for step in comparison.steps for place in step.places if place.number == entry.number]
