"""The `plan` verb: choose a method, read what it needs, return a plan."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from hlap_export.checkpoint import read_layout
from hlap_export.errors import PlanError
from hlap_export.on_progress import OnProgress, ignore_progress
from hlap_export.plan.options import CalibrationOptions, MethodName, MethodOptions
from hlap_export.plan.pruning_plan import PruningPlan, plan_of_alphas

NO_OPTIONS = MethodOptions()


def plan(
    model: Path,
    *,
    method: MethodName = "harp",
    num_layers: int | None = None,
    alphas: Mapping[int, float] | None = None,
    options: MethodOptions = NO_OPTIONS,
    calibration: CalibrationOptions | None = None,
    on_progress: OnProgress = ignore_progress,
) -> PruningPlan:
    """Decide which layers lose attention, and what takes its place.

    `harp` searches alphas of the last `num_layers` layers (default: a quarter of them) on calibration text, or of as
    many as the targets ask for. `suffix-fit` puts fitted linear maps there, `choose-fit` into the layers where that
    costs least. `attention-drop`, `mlp-drop`, `block-drop` and `group-drop` (KV groups) drop what changes the stream
    least. `fixed` takes `alphas` (layer from 0 at the embedding -> alpha in [0, 1]) and needs only config.json.

    Raises:
        CheckpointError: the model can't be read.
        PlanError: options that contradict each other, values out of range, or targets that can't be met.
        TextError: the calibration text is missing or too short.
        OutputError: the folder for the search holds something else.
    """
    layout = read_layout(model)
    if method == "fixed":
        _require_nothing_but_alphas(num_layers, alphas, options)
        return plan_of_alphas(layout, alphas or {}, method="fixed")
    if alphas:
        raise PlanError(
            where=f"method {method}",
            expected="no alphas: they are for method fixed",
            found=", ".join(f"{layer}={alpha}" for layer, alpha in alphas.items()),
            fix="leave them out, or use method fixed",
        )
    _require_number_or_targets(method, num_layers, options)
    calibration = calibration or CalibrationOptions()
    # Imported here: what only reads plans should start without torch.
    from hlap_export.plan.searching import Request, search_plan

    request = Request(model=model, layout=layout, method=method, num_layers=num_layers, options=options)
    with _folder(calibration.work) as work:
        return search_plan(request, calibration, work, on_progress)


def _require_nothing_but_alphas(
    num_layers: int | None, alphas: Mapping[int, float] | None, options: MethodOptions
) -> None:
    others = {"num_layers": num_layers is not None, "targets": options.targets.are_given, "no alpha": not alphas}
    if wrong := [name for name, found in others.items() if found]:
        raise PlanError(
            where="method fixed",
            expected="an alpha for each layer to prune, and nothing else",
            found=wrong[0],
            fix="give layer=alpha pairs, such as --alpha 8=0.2 --alpha 9=0.7",
        )


def _require_number_or_targets(method: MethodName, num_layers: int | None, options: MethodOptions) -> None:
    if num_layers is not None and num_layers < 1:
        raise PlanError(
            where="num_layers", expected="at least 1", found=str(num_layers), fix="say how many layers are to change"
        )
    if num_layers is not None and options.targets.are_given:
        raise PlanError(
            where=f"method {method}",
            expected="a number of layers or targets to reach",
            found="both",
            fix="leave out --num-layers, or the targets",
        )


@contextmanager
def _folder(work: Path | None) -> Generator[Path]:
    """The folder for what the search keeps; a temporary one where none is given."""
    if work is not None:
        yield work
    else:
        with TemporaryDirectory(prefix="hlap-export-plan-") as folder:
            yield Path(folder)
