"""The whole story: plan, prune, export, build, verify, bench, bundle, report.

A run's folder:

    recipe.yaml             what was asked, defaults included
    plan.json               which layers lose attention, each one's alpha, and why; fitted weights are beside it
    checkpoint/             the pruned Hugging Face checkpoint
    onnx/{dense,pruned}/    both models as ONNX: the baseline goes the same way as what is compared with it
    engine/{dense,pruned}/  both as engines; what can't run on this machine, also as engines that can
    verify.json             is the pruned engine right, and how well does it predict text?
    bench.json              is it faster, and smaller in memory?
    bundle/                 what a serving stack loads, where one is asked for
    results.json            the numbers with their intervals, for `gate`
    summary.json            all of it, for a machine
    report.html report.md   and for a person, with and without pictures
"""

from __future__ import annotations

from pathlib import Path

from hlap_export.budget import Budget, model_at, run_needs
from hlap_export.engines.build import stand_in
from hlap_export.export.flavours import require_available
from hlap_export.hub import model_name, resolve_model
from hlap_export.progress import Progress
from hlap_export.recipe import BundleTarget, EngineName, Recipe, effective_recipe
from hlap_export.report.compose import Folders, summarise
from hlap_export.report.summary import Summary
from hlap_export.run_stages import RunStages, require_evaluation_text
from hlap_export.stages import StageRunner


def run(
    model: str | Path | None,
    out: Path,
    *,
    recipe: Recipe | Path | None = None,
    resume: bool = False,
    trust_remote_code: bool = False,
    max_memory: int | None = None,
    engine: EngineName | None = None,
    bundle: BundleTarget | None = None,
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
        bundle: the serving stack to make a folder for, in place of the recipe's.
        progress: where to tell what is going on; None for silence.

    Returns:
        The summary. Failed checks don't raise here: `summary.require_passed()` does.

    Raises:
        HlapError: bad input, a missing backend, or an output that can't be written.
    """
    asked = effective_recipe(recipe, model, engine, bundle)
    dense = resolve_model(asked.model)
    elsewhere = stand_in(asked.engine, asked.export.dtype)
    require_available(asked.export.flavour, asked.export.dtype, asked.export.block_size)
    require_evaluation_text(dense, asked.verify, trust_remote_code=trust_remote_code)
    progress = progress or Progress(quiet=True)
    runner = StageRunner(out, resume=resume, progress=progress)
    budget = Budget(max_memory=max_memory, tell=progress.note)
    budget.allow_all(run_needs(model_at(dense), asked, room_bytes=budget.room_bytes), out)

    stage = RunStages(runner, dense, asked, trust_remote_code=trust_remote_code, max_memory=max_memory)
    planned = stage.plan()
    checkpoints = {"dense": dense, "pruned": stage.prune(planned)}
    graphs = {name: stage.export(name, checkpoint) for name, checkpoint in checkpoints.items()}
    engines = {name: stage.build(name, graph) for name, graph in graphs.items()}
    running = stage.stand_ins(checkpoints, graphs, elsewhere) if elsewhere else engines
    verified = stage.verify(running, checkpoints)
    timed = stage.bench(engines) if elsewhere is None else None
    stage.bundle(engines["pruned"], verified)
    folders = Folders(
        checkpoints=checkpoints,
        graphs=graphs,
        engines=engines,
        origins=runner.origins(),
        measured_instead=elsewhere and elsewhere.reason,
    )
    summary = summarise(model_name(asked.model), folders, planned, verified, timed)
    return stage.write_results(summary)
