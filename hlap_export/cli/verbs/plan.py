"""`hlap-export plan`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import model_at, parse_size, plan_needs
from hlap_export.cli.options import Debug, Json, MaxMemory, Model, RecipeFile, Text, TrustRemoteCode
from hlap_export.plan.options import CalibrationOptions, ChooseBy, MethodName
from hlap_export.plan.side_file import side_file_of
from hlap_export.recipe import PlanSection, effective_recipe, parse_alphas, parse_percent

PlanFile = Annotated[Path, typer.Option("--out", help="The plan file to write.", show_default=False)]
WhichMethod = Annotated[
    MethodName | None,
    typer.Option("--method", help="choose-fit fits linear maps where they cost least; harp (the default) rescales."),
]
NumLayers = Annotated[
    int | None, typer.Option(help="How many layers change; left out, what the targets say, or a quarter.")
]
Alphas = Annotated[
    list[str] | None, typer.Option(metavar="LAYER=ALPHA", help="For method fixed; repeat it for each layer.")
]
ChooseLayersBy = Annotated[
    ChooseBy | None,
    typer.Option("--choose-by", help="How choose-fit (left out: greedy) and the drops (cosine) choose."),
]
TuneEpochs = Annotated[
    int | None,
    typer.Option(
        "--tune",
        min=0,
        metavar="EPOCHS",
        help="Tune all fitted weights together in the end; 6 do (choose-, suffix-fit).",
    ),
]
MaxIncrease = Annotated[
    str | None, typer.Option(metavar="PERCENT", help="Prune as much as perplexity allows, such as 3%.")
]
LatencyRatio = Annotated[
    float | None, typer.Option(help="Prune until prefill and decode take this share of the dense model's time.")
]
KvRatio = Annotated[float | None, typer.Option(help="Prune until the KV cache is this share of the dense model's.")]
Measured = Annotated[
    bool | None, typer.Option("--measure", help="Time every step's engine instead of counting its cost; takes minutes.")
]
MaxWeights = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Prune until the weights, in the checkpoint's dtype, fit into such as 12GiB."),
]


def plan(
    model: Model = None,
    *,
    out: PlanFile,
    method: WhichMethod = None,
    num_layers: NumLayers = None,
    max_perplexity_increase: MaxIncrease = None,
    target_latency_ratio: LatencyRatio = None,
    target_kv_ratio: KvRatio = None,
    max_weights: MaxWeights = None,
    measure: Measured = None,
    choose_by: ChooseLayersBy = None,
    tune: TuneEpochs = None,
    alpha: Alphas = None,
    text: Text = None,
    recipe: RecipeFile = None,
    trust_remote_code: TrustRemoteCode = False,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Decide which layers lose attention, and what takes its place."""
    from hlap_export.checkpoint import read_layout
    from hlap_export.hub import resolve_model
    from hlap_export.inspection import inspect_plan
    from hlap_export.measuring import measuring

    asked, budget = effective_recipe(recipe, model), terminal.budget(max_memory)
    section = _overridden(
        asked.plan,
        method=method,
        num_layers=num_layers,
        max_perplexity_increase=parse_percent(max_perplexity_increase, where="--max-perplexity-increase"),
        target_latency_ratio=target_latency_ratio,
        target_kv_ratio=target_kv_ratio,
        max_weight_bytes=None if max_weights is None else parse_size(max_weights, where="--max-weights"),
        measure=measure,
        choose_by=choose_by,
        tune_epochs=tune,
        alphas=parse_alphas(alpha or []),
        text=text,
    )
    folder = resolve_model(asked.model)
    if section.method != "fixed":
        budget.allow(plan_needs(model_at(folder), section, room_bytes=budget.room_bytes), out)
    work = out.with_name(f".{out.name}.search")  # goes on there if it was killed
    with terminal.progress().stage("plan") as step, measuring(folder, asked, wanted=section.measure) as meter:
        made = hlap_export.plan(
            folder,
            method=section.method,
            num_layers=section.num_layers,
            alphas=section.alphas,
            options=section.method_options(side_file_of(out), meter),
            calibration=_calibration(section, work, trust_remote_code, budget.max_memory),
            on_progress=step,
        )
    made.save(out)
    shutil.rmtree(work, ignore_errors=True)
    terminal.show(inspect_plan(out, read_layout(folder)), as_json=json)


def _overridden(section: PlanSection, **given: Any) -> PlanSection:
    """The recipe's section with what the command line gives put in."""
    return section.model_copy(update={name: value for name, value in given.items() if value is not None})


def _calibration(
    section: PlanSection, work: Path, trust_remote_code: bool, max_memory: int | None
) -> CalibrationOptions:
    return CalibrationOptions(
        text=section.text,
        windows=section.windows,
        window_length=section.window_length,
        trust_remote_code=trust_remote_code,
        max_memory=max_memory,
        work=work,
    )
