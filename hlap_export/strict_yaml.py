"""YAML files that people write, validated strictly: an unknown key is an error that names the nearest known one."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hlap_export.errors import RecipeError


class Section(BaseModel):
    """Base of everything that is read from YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Document = TypeVar("Document", bound=BaseModel)


def parse_yaml(text: str, model: type[Document], *, where: str, example: str) -> Document:
    """Parse and validate YAML text.

    Args:
        text: the file's content.
        model: what it must hold.
        where: names it in errors.
        example: keys of such a file, for who wrote something else: "sections such as plan: and bench:".

    Raises:
        RecipeError: not YAML, an unknown key (the nearest known one is named), or a bad value.
    """
    try:
        loaded = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise RecipeError(
            where=where, expected="valid YAML", found=" ".join(str(error).split()), fix="correct the syntax there"
        ) from error
    values: Any = {} if loaded is None else loaded
    if not isinstance(values, dict):
        raise RecipeError(
            where=where,
            expected=example,
            found=f"a {type(values).__name__}",
            fix="write `section: {key: value}`; the README shows a recipe",
        )
    try:
        # Through JSON, where strict validation still takes lists as tuples and text as paths.
        return model.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise _first_problem(error, model, where) from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys without a word; here the second is an error."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = cast(Any, loader).construct_object(key_node, deep=True)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def _first_problem(error: ValidationError, model: type[BaseModel], where: str) -> RecipeError:
    """The first problem, with its path; for an unknown key, which comes before others, the nearest known one."""
    problems = error.errors()
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    path = ".".join(str(part) for part in problem["loc"] if part != "[key]")
    if problem["type"] == "extra_forbidden":
        *section, key = (str(part) for part in problem["loc"])
        known = list(_section_at(model, section).model_fields)
        return RecipeError(
            where=f"{where}: {path}",
            expected=f"one of {', '.join(known)}",
            found=f"the unknown key {key!r}",
            fix=_nearest(key, section, known, model),
        )
    if problem["type"] == "missing":
        return RecipeError(
            where=where, expected=f"the key {path}", found="nothing of that name", fix="add it: it has no default"
        )
    return RecipeError(
        where=f"{where}: {path}" if path else where,
        expected=_plainly(str(problem["msg"])),
        found=repr(problem["input"]) if not isinstance(problem["input"], dict) else "values that contradict it",
        fix="correct that value, or leave the key out for its default",
    )


def _plainly(message: str) -> str:
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def _nearest(key: str, section: list[str], known: list[str], model: type[BaseModel]) -> str:
    """The advice for an unknown key: the closest name in its section, else the closest in any section."""
    here = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if here:
        return f"did you mean {'.'.join([*section, here[0]])}?"
    paths = {name.rsplit(".", 1)[-1]: name for name in _all_keys(model)}
    elsewhere = difflib.get_close_matches(key, paths, n=1)
    if elsewhere:
        return f"did you mean {paths[elsewhere[0]]}?"
    return "remove the key, or correct its name"


def _section_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The section at a path; an item's number in a list is no step of its own."""
    section = model
    for part in path:
        if not part.isdigit():
            section = next(_sections(section.model_fields[part].annotation))
    return section


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Models that a field's type names, inside of lists and alternatives too."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _sections(argument)


def _all_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    fields: Mapping[str, Any] = section.model_fields
    for name, field in fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _all_keys(inner, f"{prefix}{name}.")
