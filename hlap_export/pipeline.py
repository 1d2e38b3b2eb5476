"""The whole story: plan, prune, export, build, verify, bench, report.

A run's folder:

    recipe.yaml             what was asked, defaults included
    plan.json               which layers lose attention, each one's alpha, and why; fitted weights are beside it
    checkpoint/             the pruned Hugging Face checkpoint
    onnx/{dense,pruned}/    both models as ONNX: the baseline goes the same way as what is compared with it
    engine/{dense,pruned}/  both as engines; what can't run on this machine, also as engines that can
    verify.json             is the pruned engine right, and how well does it predict text?
    bench.json              is it faster, and smaller in memory?
    results.json            the numbers with their intervals, for `gate`
    summary.json            all of it, for a machine
    report.html report.md   and for a person, with and without pictures
"""

from __future__ import annotations

from pathlib import Path

from hlap_export import reference_model
from hlap_export.artifacts import read_manifest, write_text_whole
from hlap_export.bench import BenchOptions, BenchReport, bench
from hlap_export.budget import Budget, model_at, run_needs
from hlap_export.checkpoint import read_layout
from hlap_export.engines import build
from hlap_export.engines.build import StandIn, stand_in
from hlap_export.export import export
from hlap_export.export.flavours import require_available
from hlap_export.gate.collect import read_results
from hlap_export.hub import model_name, resolve_model
from hlap_export.measuring import measuring
from hlap_export.plan import CalibrationOptions, PruningPlan, load_plan, plan
from hlap_export.plan.pruning_plan import validate_plan
from hlap_export.plan.side_file import copy_side_file, side_file_damage, side_file_of
from hlap_export.progress import Progress, Step
from hlap_export.prune import prune
from hlap_export.recipe import (
    BenchSection,
    EngineName,
    ExportSection,
    Recipe,
    VerifySection,
    dump_recipe,
    effective_recipe,
)
from hlap_export.report.compose import Folders, summarise
from hlap_export.report.html import html_report
from hlap_export.report.markdown import markdown_report
from hlap_export.report.summary import Summary
from hlap_export.stages import StageRunner
from hlap_export.texts import has_tokenizer, read_tokens, require_window_length, spread_windows
from hlap_export.verify import VerifyOptions, VerifyReport, verify

PLAN_FILE = "plan.json"
FITTED_FILE = side_file_of(Path(PLAN_FILE)).name


def run(
    model: str | Path | None,
    out: Path,
    *,
    recipe: Recipe | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    max_memory: int | None = None,
    engine: EngineName | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Turn a checkpoint into a verified, timed engine, and say what was gained and lost.

    Args:
        model: checkpoint folder or hub id; None takes the recipe's, or else the reference model.
        out: a new or empty folder, or with `resume` that of an earlier run.
        recipe: what differs from the defaults, or the YAML file that says so.
        resume: reuse the finished stages that this very request would make again.
        trust_remote_code: whether a tokenizer class that the model folder brings along may be executed.
        max_memory: most bytes of RAM that a step may hold; None for what the machine has free.
        engine: what to build, in place of the recipe's.
        progress: where to tell what is going on; None for silence.

    Returns:
        The summary. Failed checks don't raise here: `summary.require_passed()` does.

    Raises:
        HlapError: bad input, a missing backend, or an output that can't be written.
    """
    asked = effective_recipe(recipe, model, engine)
    dense = resolve_model(asked.model)
    elsewhere = stand_in(asked.engine, asked.export.dtype)
    require_available(asked.export.flavour, asked.export.dtype, asked.export.block_size)
    _require_evaluation_text(dense, asked.verify, trust_remote_code)
    progress = progress or Progress(quiet=True)
    stages = StageRunner(out, resume=resume, progress=progress)
    budget = Budget(max_memory=max_memory, tell=progress.note)
    budget.allow_all(run_needs(model_at(dense), asked, room_bytes=budget.room_bytes), out)

    planned = _plan(stages, dense, asked, trust_remote_code, max_memory)
    write_text_whole(out / "recipe.yaml", dump_recipe(asked))
    pruned = _prune(stages, dense, planned)
    checkpoints = {"dense": dense, "pruned": pruned}
    graphs = {name: _export(stages, name, checkpoint, asked.export) for name, checkpoint in checkpoints.items()}
    engines = {name: _build(stages, name, graph, asked) for name, graph in graphs.items()}
    running = engines if elsewhere is None else _stand_ins(stages, checkpoints, graphs, elsewhere)
    verified = _verify(stages, running, checkpoints, asked.verify, trust_remote_code, max_memory)
    timed = _bench(stages, engines, asked.bench) if elsewhere is None else None

    folders = Folders(
        checkpoints=checkpoints,
        graphs=graphs,
        engines=engines,
        origins=stages.origins(),
        measured_instead=elsewhere and elsewhere.reason,
    )
    summary = summarise(model_name(asked.model), folders, planned, verified, timed)
    _write(summary, out)
    stages.seal(inputs={"model": dense}, parameters=asked.model_dump(mode="json"), passed=summary.passed)
    return summary


def _write(summary: Summary, out: Path) -> None:
    """The run's results, for a machine and for a person."""
    write_text_whole(out / "summary.json", summary.model_dump_json(indent=2) + "\n")
    write_text_whole(out / "results.json", read_results(out).model_dump_json(indent=2) + "\n")
    write_text_whole(out / "report.md", markdown_report(summary))
    write_text_whole(out / "report.html", html_report(summary))


def _plan(
    stages: StageRunner, dense: Path, whole: Recipe, trust_remote_code: bool, max_memory: int | None
) -> PruningPlan:
    asked = whole.plan
    calibration = CalibrationOptions(
        text=asked.text or reference_model.calibration_text(),
        windows=asked.windows,
        window_length=asked.window_length,
        trust_remote_code=trust_remote_code,
        max_memory=max_memory,
        work=stages.unfinished(PLAN_FILE),
    )

    fitted = stages.path(FITTED_FILE)

    def make(step: Step) -> PruningPlan:
        if asked.file is not None:
            given = load_plan(asked.file)
            validate_plan(given, read_layout(dense))
            copy_side_file(side_file_of(asked.file), given, fitted)
            return given
        with measuring(dense, whole, wanted=asked.measure) as meter:
            return plan(
                dense,
                method=asked.method,
                num_layers=asked.num_layers,
                alphas=asked.alphas,
                options=asked.method_options(fitted, meter),
                calibration=calibration,
                on_progress=step,
            )

    return stages.document(
        PLAN_FILE,
        PruningPlan,
        make=make,
        inputs={"model": dense, "text": calibration.text, "file": asked.file},
        parameters=asked.model_dump(mode="json", exclude={"text", "file"}),
        companion_damage=lambda planned: side_file_damage(fitted, planned),
    )


def _prune(stages: StageRunner, dense: Path, planned: PruningPlan) -> Path:
    return stages.folder(
        "checkpoint",
        make=lambda out, step: prune(dense, planned, out, fitted=stages.path(FITTED_FILE), on_progress=step),
        inputs={"model": dense, "plan": stages.path("plan.json")},
        parameters={"plan": planned.model_dump(mode="json")},
        steps_in_bytes=True,
    )


def _export(stages: StageRunner, name: str, checkpoint: Path, asked: ExportSection) -> Path:
    return stages.folder(
        f"onnx/{name}",
        make=lambda out, step: export(
            checkpoint,
            out,
            flavour=asked.flavour,
            dtype=asked.dtype,
            block_size=asked.block_size,
            on_progress=step,
        ),
        inputs={"checkpoint": checkpoint},
        parameters=asked.model_dump(mode="json"),
        steps_in_bytes=True,
    )


def _build(stages: StageRunner, name: str, graph: Path, asked: Recipe) -> Path:
    options = asked.tensorrt_options
    return stages.folder(
        f"engine/{name}",
        make=lambda out, step: build(graph, out, engine=asked.engine, options=options),
        inputs={"onnx": graph},
        parameters={"engine": asked.engine, **(options.parameters() if options else {})},
    )


def _stand_ins(
    stages: StageRunner, checkpoints: dict[str, Path], graphs: dict[str, Path], elsewhere: StandIn
) -> dict[str, Path]:
    """Engines that compute what those that were built do, where these can't run."""
    made: dict[str, Path] = {}
    for name, graph in graphs.items():
        source, parameters = graph, read_manifest(graph, kind="onnx").parameters
        if parameters["dtype"] != elsewhere.dtype:
            section = ExportSection(flavour=parameters["flavour"], dtype=elsewhere.dtype)
            source = _export(stages, f"{name}-{elsewhere.dtype}", checkpoints[name], section)
        made[name] = _build(stages, f"{name}-{elsewhere.engine}", source, Recipe(engine=elsewhere.engine))
    return made


def _require_evaluation_text(dense: Path, asked: VerifySection, trust_remote_code: bool) -> None:
    """Find out that the text is missing or too short now, not after the search and two exports."""
    if has_tokenizer(dense):
        text = asked.text or reference_model.evaluation_text()
        layout = read_layout(dense)
        require_window_length(asked.window_length, layout.max_positions)
        tokens = read_tokens(dense, text, vocab_size=layout.vocab_size, trust_remote_code=trust_remote_code)
        spread_windows(tokens, windows=asked.windows, window_length=asked.window_length)


def _verify(
    stages: StageRunner,
    engines: dict[str, Path],
    checkpoints: dict[str, Path],
    asked: VerifySection,
    trust_remote_code: bool,
    max_memory: int | None,
) -> VerifyReport:
    """Verify the pruned engine, and the pruned checkpoint against the dense one."""
    text = asked.text or reference_model.evaluation_text()
    options = VerifyOptions(
        windows=asked.windows,
        window_length=asked.window_length,
        decode_steps=asked.decode_steps,
        context_length=asked.context_length,
        dense=checkpoints["dense"],
        tokenizer=checkpoints["dense"] if trust_remote_code else None,
        trust_remote_code=trust_remote_code,
        max_memory=max_memory,
    )
    return stages.document(
        "verify.json",
        VerifyReport,
        make=lambda step: verify(
            engines["pruned"],
            checkpoints["pruned"],
            text=text,
            baseline=engines["dense"],
            options=options,
            on_progress=step,
        ),
        inputs={**engines, "checkpoint": checkpoints["pruned"], "model": checkpoints["dense"], "text": text},
        parameters=asked.model_dump(mode="json", exclude={"text"}),
    )


def _bench(stages: StageRunner, engines: dict[str, Path], asked: BenchSection) -> BenchReport:
    return stages.document(
        "bench.json",
        BenchReport,
        make=lambda step: bench(
            engines["pruned"],
            engines["dense"],
            prompt_lengths=asked.prompt_lengths,
            context_lengths=asked.context_lengths,
            options=BenchOptions(batches=asked.batches, repeats=asked.repeats, rounds=asked.rounds),
            on_progress=step,
        ),
        inputs={**engines},
        parameters=asked.model_dump(mode="json"),
    )
