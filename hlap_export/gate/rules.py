"""The rules of a gate: YAML, validated strictly.

unclear: pass             # what an interval that reaches over its bound means; fail for releases
rules:
  - metric: failed_checks
    at_most: 0
  - metric: decode_ms
    against: dense        # the dense engine of the same bench
    at_most: -5%
  - metric: "*_ratio"     # prefill_ratio and decode_ratio, at every batch and length
    against: accepted     # the run that was accepted last
    at_most: +5%
  - metric: engine_bytes
    at_most: 12 MiB
"""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator, model_validator

from hlap_export.budget.sizes import UNITS
from hlap_export.errors import RecipeError
from hlap_export.gate.results import Metric, MetricName
from hlap_export.strict_yaml import Section, parse_yaml

METRICS: tuple[str, ...] = get_args(MetricName)
# Those that have no dense counterpart in a run: they are about the candidate alone, or ratios already.
ALONE = ("failed_checks", "check", "greedy_agreement", "prefill_ratio", "decode_ratio")

Count = Annotated[int, Field(ge=1)]
Against = Literal["dense", "accepted"]
Unclear = Literal["pass", "fail"]


class Rule(Section):
    """One bound on one metric, or on several."""

    metric: str
    """A metric's name, or a pattern such as `decode_*`."""
    against: Against | None = None
    """What a relative bound refers to: the `dense` engine of the same run, or the `accepted` run. Left out, the bound
    is on the value itself."""
    at_most: float | str | None = None
    """A number, a size ("12 MiB"), or with `against` a change ("+5%", "-10%")."""
    at_least: float | str | None = None
    """Likewise, from below."""
    batch: Count | None = None
    """Only with so many rows; left out, with any."""
    tokens: Count | None = None
    """Only at this length; left out, at any."""
    check: str | None = None
    """For metric `check`: its name in verify's report."""
    task: str | None = None
    """For metric `score`: names of task and metric, or a pattern such as `arc_* acc`."""
    unclear: Unclear | None = None
    """What an interval that reaches over the bound means here; left out, what the whole file says."""

    @field_validator("metric")
    @classmethod
    def _exists(cls, metric: str) -> str:
        if not _named(metric):
            raise ValueError(f"a metric that exists; {_nearest(metric)}")
        return metric

    @model_validator(mode="after")
    def _makes_sense(self) -> Rule:
        found = _named(self.metric)
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("either at_most or at_least")
        parse_bound(self.at_most if self.at_least is None else self.at_least, is_change=self.against is not None)
        if self.against == "dense" and (alone := [name for name in found if name in ALONE]):
            raise ValueError(
                f"no `against: dense` for {', '.join(alone)}, which the dense engine has no counterpart of"
            )
        for name, selector in (("check", self.check), ("score", self.task)):
            if selector is not None and found != [name]:
                raise ValueError(f"no {'check' if name == 'check' else 'task'}'s name but with metric: {name}")
        return self

    @property
    def bound(self) -> float:
        """The bound as a number: of the value, or of value / reference where it is relative."""
        given = self.at_most if self.at_least is None else self.at_least
        return parse_bound(given, is_change=self.against is not None)

    @property
    def text(self) -> str:
        """The rule in words: "at most +5% against accepted"."""
        side, given = ("at most", self.at_most) if self.at_least is None else ("at least", self.at_least)
        shown = f"{given:g}" if isinstance(given, int | float) else str(given)
        return f"{side} {shown}" + (f" against {self.against}" if self.against else "")

    def applies_to(self, metric: Metric) -> bool:
        """Whether the rule is about this metric."""
        return (
            fnmatchcase(metric.name, self.metric)
            and self.batch in (None, metric.batch)
            and self.tokens in (None, metric.tokens)
            and self.check in (None, metric.check)
            and (self.task is None or fnmatchcase(metric.task or "", self.task))
        )


class Rules(Section):
    """A rules file."""

    unclear: Unclear = "pass"
    """What it means that an interval reaches over its bound: more repeats or a calmer machine would tell."""
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]


def load_rules(path: Path) -> Rules:
    """Read a rules file.

    Raises:
        RecipeError: no such file, not YAML, an unknown key or metric (the nearest known one is named), or a bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            where=str(path),
            expected="a YAML file with rules",
            found=str(error.strerror if isinstance(error, OSError) else error),
            fix="pass an existing file to --rules; examples/gate/gate.yaml is one to start from",
        ) from error
    return parse_rules(text, where=str(path))


def parse_rules(text: str, *, where: str = "rules") -> Rules:
    """Parse and validate YAML text; `where` names it in errors."""
    return parse_yaml(text, Rules, where=where, example="rules: and a list of them")


def parse_bound(given: float | str | None, *, is_change: bool) -> float:
    """A change such as "+5%" as 1.05; a value as it is, or a size in bytes."""
    if is_change:
        match = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*%\s*", given) if isinstance(given, str) else None
        if match is None:
            raise ValueError(f"a change such as +5% or -10%, because the rule is `against` something, not {given!r}")
        return 1 + float(match.group(1)) / 100
    if isinstance(given, int | float):
        return float(given)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)\s*", given or "")
    if match is None or match.group(2).lower() not in UNITS:
        raise ValueError(f"a number or a size such as 12 MiB, not {given!r}; a change needs `against: dense|accepted`")
    return float(match.group(1)) * UNITS[match.group(2).lower()]


def _named(pattern: str) -> list[str]:
    return [name for name in METRICS if fnmatchcase(name, pattern)]


def _nearest(name: str) -> str:
    close = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"one of {', '.join(METRICS)}"
