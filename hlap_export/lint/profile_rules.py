"""Rules for a graph's inputs, and for the optimisation profile that gives them sizes.

The builder takes a profile that names unknown inputs, or gives tied dimensions different ranges, without a word; the
engine then refuses inputs that it should take, or fails at run time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from hlap_export.errors import RecipeError
from hlap_export.lint.graph import Dims

Sizes = tuple[int, ...]
Signature = Mapping[str, Dims]
"""A graph's inputs and their dimensions: numbers, or names that tie equal ones together."""

BOUNDS = ("min", "opt", "max")


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """The sizes that a profile gives to one input."""

    min: Sizes
    opt: Sizes
    max: Sizes

    def of_axis(self, axis: int) -> Sizes:
        """Least, usual and largest size of a dimension."""
        return (self.min[axis], self.opt[axis], self.max[axis])


Profile = Mapping[str, Shapes]
Problem = tuple[str, str, str]
"""Rule, input, what is wrong with it."""


def profile_problems(inputs: Signature, profile: Profile) -> Iterator[Problem]:
    """What is wrong with a profile for these inputs."""
    for name in profile.keys() - inputs.keys():
        close = get_close_matches(name, inputs, n=1)
        yield "profile-unknown-input", name, "no input of that name" + (f"; did you mean {close[0]}?" if close else "")
    fitting: dict[str, Shapes] = {}
    for name, dims in inputs.items():
        shapes = profile.get(name)
        if shapes is None:
            if any(not isinstance(dim, int) for dim in dims):
                yield "profile-missing-input", name, f"no sizes for {_text(dims)}"
        elif {len(shapes.min), len(shapes.opt), len(shapes.max)} != {len(dims)}:
            yield "profile-rank", name, f"{len(shapes.opt)} sizes for {_text(dims)}"
        else:
            fitting[name] = shapes
            yield from _own_problems(name, dims, shapes)
    yield from _tied_problems(inputs, fitting)


def _own_problems(name: str, dims: Dims, shapes: Shapes) -> Iterator[Problem]:
    for axis, dim in enumerate(dims):
        least, usual, largest = shapes.of_axis(axis)
        if not least <= usual <= largest:
            yield "profile-order", name, f"{least}, {usual}, {largest} for dimension {axis}"
        elif isinstance(dim, int) and (least, largest) != (dim, dim):
            yield "profile-static-dimension", name, f"{least} to {largest} for dimension {axis}, which is {dim}"


def _tied_problems(inputs: Signature, profile: Profile) -> Iterator[Problem]:
    """Dimensions of one name that differ, and sums of names that differ from the sum."""
    ranges: dict[str, tuple[str, Sizes]] = {}
    sums: list[tuple[str, int, str]] = []
    for name, shapes in profile.items():
        for axis, dim in enumerate(inputs[name]):
            if not isinstance(dim, str):
                continue
            if "+" in dim:
                sums.append((name, axis, dim))
            first, sizes = ranges.setdefault(dim, (name, shapes.of_axis(axis)))
            if sizes != shapes.of_axis(axis):
                yield (
                    "profile-tied-dimension",
                    name,
                    f"{dim} is {_range(shapes.of_axis(axis))}, in {first} {_range(sizes)}",
                )
    for name, axis, dim in sums:
        parts = [ranges.get(part.strip()) for part in dim.split("+")]
        known = [part[1] for part in parts if part is not None]
        if len(known) < len(parts):
            continue
        total = tuple(sum(sizes) for sizes in zip(*known, strict=True))
        if profile[name].of_axis(axis) != total:
            yield "profile-tied-dimension", name, f"{dim} is {_range(profile[name].of_axis(axis))}, not {_range(total)}"


def _range(sizes: Sizes) -> str:
    return f"{sizes[0]}..{sizes[1]}..{sizes[2]}"


def _text(dims: Sequence[int | str | None]) -> str:
    return f"[{', '.join('?' if dim is None else str(dim) for dim in dims)}]"


def parse_profile(given: Sequence[str]) -> dict[str, Shapes]:
    """Sizes from the command line's `input_ids=1x1:1x64:1x128`; one size alone stands for all three.

    Raises:
        RecipeError: something else.
    """
    return dict(_parse_shapes(text) for text in given)


def _parse_shapes(text: str) -> tuple[str, Shapes]:
    name, _, sizes = text.rpartition("=")
    try:
        bounds = [tuple(int(size) for size in bound.split("x")) for bound in sizes.split(":")]
    except ValueError:
        bounds = []
    if not name or len(bounds) not in (1, len(BOUNDS)) or len({len(bound) for bound in bounds}) != 1:
        raise RecipeError(
            where="--shapes",
            expected="an input and its least, usual and largest sizes, such as input_ids=1x1:1x64:1x128",
            found=repr(text),
            fix="write them like that; repeat --shapes for each input",
        )
    if len(bounds) == 1:
        bounds *= len(BOUNDS)
    return name, Shapes(min=bounds[0], opt=bounds[1], max=bounds[2])
