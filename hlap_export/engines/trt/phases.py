"""Prefill and decode: the ranges of shapes that each is compiled for, one optimisation profile each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hlap_export.engines.trt.options import Sizes
from hlap_export.errors import ArtefactError

PhaseName = Literal["prefill", "decode"]
PHASES: tuple[PhaseName, ...] = ("prefill", "decode")

Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """What one dimension may be, and what it is expected to be."""

    least: int
    typical: int
    most: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphInput:
    """An input of the graph: each dimension is a number or the name that it shares with others."""

    name: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeRange:
    """The shapes of one input in one phase."""

    least: Shape
    typical: Shape
    most: Shape


def ranges(phase: PhaseName, sizes: Sizes, *, decode_tokens: int) -> dict[str, Range]:
    """What the named dimensions are in a phase.

    Args:
        phase: which one.
        sizes: of the engine.
        decode_tokens: the most new tokens of a decode step: 1, or 2 where the kernel for a single one can't be had.
    """
    batch = Range(least=1, typical=sizes.typical_batch, most=sizes.max_batch)
    if phase == "prefill":
        return {
            "batch": batch,
            "sequence": Range(least=1, typical=sizes.typical_prompt, most=sizes.max_prompt),
            "num_logits": Range(least=1, typical=1, most=sizes.max_logits),
        }
    return {
        "batch": batch,
        "sequence": Range(least=1, typical=1, most=decode_tokens),
        "num_logits": Range(least=1, typical=1, most=1),
    }


def shape_ranges(inputs: Sequence[GraphInput], named: Mapping[str, Range]) -> dict[str, ShapeRange]:
    """The shapes of every input; dimensions of one name vary together by construction.

    Raises:
        ArtefactError: an input has a dimension of another name.
    """
    return {
        given.name: ShapeRange(
            least=tuple(_range(given, dim, named).least for dim in given.dims),
            typical=tuple(_range(given, dim, named).typical for dim in given.dims),
            most=tuple(_range(given, dim, named).most for dim in given.dims),
        )
        for given in inputs
    }


def _range(given: GraphInput, dim: int | str, named: Mapping[str, Range]) -> Range:
    if isinstance(dim, int):
        return Range(least=dim, typical=dim, most=dim)
    if dim not in named:
        raise ArtefactError(
            where=f"graph input {given.name}",
            expected=f"dimensions that are numbers or among {', '.join(named)}",
            found=repr(dim),
            fix="export with --flavour trt",
        )
    return named[dim]
