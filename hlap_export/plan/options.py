"""What a caller may ask of `plan`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from hlap_export.plan.layer_plan import LinearForm, Refit
from hlap_export.plan.pruning_plan import PruningPlan
from hlap_export.plan.targets import NO_TARGETS, Targets

MethodName = Literal[
    "harp", "suffix-fit", "choose-fit", "attention-drop", "mlp-drop", "block-drop", "group-drop", "fixed"
]
FITTING_METHODS: tuple[MethodName, ...] = ("suffix-fit", "choose-fit")
ChooseBy = Literal["greedy", "loss", "unexplained", "cosine"]


class Measure(Protocol):
    """Measures the latency of an engine of the plan, relative to the dense one's."""

    @property
    def settings(self) -> dict[str, Any]:
        """What decides it beside the plan, as JSON values."""
        ...

    def __call__(self, plan: PruningPlan, /) -> float: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationOptions:
    """Which text plans are searched on, and with what.

    Attributes:
        text: a UTF-8 file; None takes the calibration text that ships with the reference model.
        windows: how many windows, spread evenly over the text. Methods that fit or choose hold half as many more back,
            to judge by.
        window_length: tokens in one window.
        trust_remote_code: whether a tokenizer class that the checkpoint brings along may be executed.
        max_memory: most bytes of RAM for the whole process; layers that don't fit are loaded one at a time. None for
            what the machine has free.
        work: folder that keeps what the search has finished: the same call goes on there after a kill. The caller
            removes it when the plan is saved. None for a temporary folder.
    """

    text: Path | None = None
    windows: int = 64
    window_length: int = 256
    trust_remote_code: bool = False
    max_memory: int | None = None
    work: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodOptions:
    """What the methods that fit or choose are to do, and where they stop.

    Attributes:
        targets: where to stop, where no number of layers is given.
        choose_by: how `choose-fit` and the methods that drop choose layers; None for greedy, and for cosine.
        form: of fitted maps.
        rank: of a low-rank map; None for HARP's own cost.
        follow_residual: whether a fitted map is also to undo the error that the residual stream carries so far.
        refit: what is fitted anew of what stays above the first map, at no cost at inference.
        tune_epochs: passes over the windows that tune all fitted weights together in the end; 0 for none.
        weights: the file for fitted weights, which lies beside the plan (plan.json has plan.safetensors).
        measure: latency of a plan's engine relative to the dense one's; None to count it.
        compare: whether HARP is searched too, so that its curve stands beside the method's own.
    """

    targets: Targets = NO_TARGETS
    choose_by: ChooseBy | None = None
    form: LinearForm = "low_rank"
    rank: int | None = None
    follow_residual: bool = True
    refit: Refit = "attention"
    tune_epochs: int = 0
    weights: Path | None = None
    measure: Measure | None = None
    compare: bool = True
