"""The `plan` verb: choose a method, read what it needs, return a plan."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from hlap_export.checkpoint import read_layout
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.on_progress import OnProgress, ignore_progress
from hlap_export.plan.pruning_plan import PruningPlan, TextWindows, plan_of_alphas
from hlap_export.reference_model import calibration_text
from hlap_export.texts import read_tokens, require_window_length, spread_windows

Method = Literal["harp", "fixed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationOptions:
    """Which text the alphas are searched on, and with what.

    Attributes:
        text: a UTF-8 file; None takes the calibration text that ships with the reference model.
        windows: how many windows, spread evenly over the text.
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


def plan(
    model: Path,
    *,
    method: Method = "harp",
    num_layers: int | None = None,
    alphas: Mapping[int, float] | None = None,
    calibration: CalibrationOptions | None = None,
    on_progress: OnProgress = ignore_progress,
) -> PruningPlan:
    """Decide which layers lose attention, and each one's alpha.

    `harp` searches the last `num_layers` layers (default: a quarter of them) on calibration text. `fixed` takes
    `alphas` (layer from 0 at the embedding -> alpha in [0, 1]) and needs no weights, only config.json.

    Raises:
        CheckpointError: the model can't be read.
        PlanError: options that contradict each other, or values out of range.
        TextError: the calibration text is missing or too short.
        OutputError: the folder for the search holds something else.
    """
    layout = read_layout(model)
    if method == "fixed":
        if not alphas or num_layers is not None:
            raise PlanError(
                where="method fixed",
                expected="an alpha for each layer to prune, and nothing else",
                found="num_layers" if num_layers is not None else "no alpha",
                fix="give layer=alpha pairs, such as --alpha 8=0.2 --alpha 9=0.7",
            )
        return plan_of_alphas(layout, alphas, method="fixed")
    if alphas:
        raise PlanError(
            where="method harp",
            expected="no alphas: they are what is searched",
            found=", ".join(f"{layer}={alpha}" for layer, alpha in alphas.items()),
            fix="leave them out, or use method fixed",
        )
    return _search(model, layout, num_layers, calibration or CalibrationOptions(), on_progress)


def _search(
    model: Path, layout: ModelLayout, num_layers: int | None, options: CalibrationOptions, on_progress: OnProgress
) -> PruningPlan:
    import torch

    from hlap_export.plan.calibration import Windows
    from hlap_export.plan.harp import default_num_layers, search_harp

    require_window_length(options.window_length, layout.max_positions)
    path = options.text or calibration_text()
    text = read_tokens(model, path, vocab_size=layout.vocab_size, trust_remote_code=options.trust_remote_code)
    ids = spread_windows(text, windows=options.windows, window_length=options.window_length)
    described = TextWindows(
        name=path.name, sha256=text.sha256, num_windows=options.windows, window_length=options.window_length
    )
    with _folder(options.work) as work:
        return search_harp(
            model,
            Windows(ids=torch.tensor(ids), text=described),
            num_layers=default_num_layers(layout) if num_layers is None else num_layers,
            work=work,
            max_memory=options.max_memory,
            on_progress=on_progress,
        )


@contextmanager
def _folder(work: Path | None) -> Generator[Path]:
    """The folder for what the search keeps; a temporary one where none is given."""
    if work is not None:
        yield work
    else:
        with TemporaryDirectory(prefix="hlap-export-plan-") as folder:
            yield Path(folder)
