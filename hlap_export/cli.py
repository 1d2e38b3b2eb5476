"""The command line: one command per verb, a thin shell over the functions of the same names.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed, 2 wrong usage or input,
3 a backend is missing, 130 interrupted.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import (
    SearchSize,
    bench_needs,
    build_needs,
    export_needs,
    model_at,
    prune_needs,
    search_needs,
    verify_needs,
)
from hlap_export.errors import HlapError
from hlap_export.recipe import Method, effective_recipe, parse_alphas

app = typer.Typer(
    name="hlap-export",
    help="Prune the high attention layers of a decoder LLM and ship it as a smaller, verified engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Checkpoint folder or hub id; left out, the reference model."),
]
OutFolder = Annotated[Path, typer.Option("--out", help="New or empty folder for the result.", show_default=False)]
Text = Annotated[Path | None, typer.Option(help="UTF-8 text; left out, the one that ships with the reference model.")]
RecipeFile = Annotated[Path | None, typer.Option("--recipe", help="YAML file with what differs from the defaults.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow a tokenizer class that the model folder brings to run.")
]
MaxMemory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Most memory to use, such as 4GiB; left out, what this machine has free."),
]
# Read by `main`, which sees the arguments of every command.
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hlap-export {hlap_export.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    model: Model = None,
    *,
    out: OutFolder,
    recipe: RecipeFile = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in --out: finished stages are reused.")] = False,
    trust_remote_code: TrustRemoteCode = False,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Run the whole pipeline: plan, prune, export, build, verify, bench, report."""
    summary = hlap_export.run(
        model,
        out,
        recipe=recipe,
        resume=resume,
        trust_remote_code=trust_remote_code,
        max_memory=terminal.budget(max_memory).max_memory,
        progress=terminal.progress(),
    )
    terminal.show(summary, as_json=json)
    summary.require_passed()


@app.command()
def plan(
    model: Model = None,
    *,
    out: Annotated[Path, typer.Option("--out", help="The plan file to write.", show_default=False)],
    method: Annotated[
        Method | None, typer.Option(help="harp (the default) searches each alpha; fixed takes --alpha as given.")
    ] = None,
    num_layers: Annotated[
        int | None, typer.Option(help="How many of the last layers lose attention; left out, a quarter.")
    ] = None,
    alpha: Annotated[
        list[str] | None, typer.Option(metavar="LAYER=ALPHA", help="For method fixed; repeat it for each layer.")
    ] = None,
    text: Text = None,
    recipe: RecipeFile = None,
    trust_remote_code: TrustRemoteCode = False,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Decide which layers lose attention, and each one's alpha."""
    from hlap_export.checkpoint import read_layout
    from hlap_export.hub import resolve_model
    from hlap_export.inspection import inspect_plan
    from hlap_export.plan import CalibrationOptions

    asked, budget = effective_recipe(recipe, model), terminal.budget(max_memory)
    section, folder = asked.plan, resolve_model(asked.model)
    method, num_layers = method or section.method, section.num_layers if num_layers is None else num_layers
    if method == "harp":
        size = SearchSize.of(read_layout(folder), num_layers, section.windows, section.window_length)
        budget.allow(search_needs(model_at(folder), size, room_bytes=budget.room_bytes), out)
    work = out.with_name(f".{out.name}.search")  # goes on there if it was killed
    with terminal.progress().stage("plan") as step:
        made = hlap_export.plan(
            folder,
            method=method,
            num_layers=num_layers,
            alphas=parse_alphas(alpha or []) or section.alphas,
            calibration=CalibrationOptions(
                text=text or section.text,
                windows=section.windows,
                window_length=section.window_length,
                trust_remote_code=trust_remote_code,
                max_memory=budget.max_memory,
                work=work,
            ),
            on_progress=step,
        )
    made.save(out)
    shutil.rmtree(work, ignore_errors=True)
    terminal.show(inspect_plan(out, read_layout(folder)), as_json=json)


@app.command()
def prune(
    model: Model = None,
    *,
    plan: Annotated[Path, typer.Option("--plan", help="The plan file.", show_default=False)],
    out: OutFolder,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Apply a plan: write a Hugging Face checkpoint, alphas folded into the weights."""
    from hlap_export.hub import resolve_model
    from hlap_export.plan.pruning_plan import load_plan

    folder, planned = resolve_model(model), load_plan(plan)
    terminal.budget(max_memory).allow(prune_needs(model_at(folder), planned), out)
    with terminal.progress().stage("prune", in_bytes=True) as step:
        hlap_export.prune(folder, planned, out, on_progress=step)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, dense or pruned.")],
    *,
    out: OutFolder,
    flavour: Annotated[str, typer.Option(help="portable: plain ONNX operators; ort: ONNX Runtime's own.")] = "portable",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16; with ort also int8 and int4.")] = "float32",
    block_size: Annotated[
        int | None, typer.Option(help="Of int8 and int4: so many weights share a scale; left out, 32.")
    ] = None,
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint as ONNX, with a KV cache only where attention is left."""
    from hlap_export.export.flavours import require_available

    require_available(flavour, dtype, block_size)
    terminal.budget(max_memory).allow(export_needs(model_at(checkpoint), dtype), out)
    with terminal.progress().stage("export", in_bytes=True) as step:
        hlap_export.export(checkpoint, out, flavour=flavour, dtype=dtype, block_size=block_size, on_progress=step)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written


@app.command()
def build(
    export_dir: Annotated[Path, typer.Argument(help="What `export` wrote.")],
    *,
    out: OutFolder,
    engine: Annotated[str, typer.Option(help="`hlap-export doctor` lists what works here.")] = "onnxruntime",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compile an export into an engine."""
    terminal.budget().allow(build_needs(model_at(export_dir, kind="onnx")), out)
    with terminal.progress().stage("build"):
        hlap_export.build(export_dir, out, engine=engine)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written


@app.command()
def verify(
    candidate: Annotated[Path, typer.Argument(help="The engine to check.")],
    *,
    reference: Annotated[Path, typer.Option(help="The checkpoint that it was made from.", show_default=False)],
    baseline: Annotated[Path | None, typer.Option(help="The dense engine, to compare perplexity with.")] = None,
    text: Text = None,
    recipe: RecipeFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Check that an engine computes what its checkpoint means; exit code 1 if it doesn't."""
    from hlap_export import reference_model
    from hlap_export.verify import VerifyOptions

    section = effective_recipe(recipe, None).verify
    options = VerifyOptions(windows=section.windows, window_length=section.window_length)
    models, budget = (model_at(reference), model_at(candidate, kind="engine")), terminal.budget()
    size = {"windows": options.windows, "window_length": options.window_length}
    budget.allow(verify_needs(*models, **size, room_bytes=budget.room_bytes), candidate)
    with terminal.progress().stage("verify") as step:
        report = hlap_export.verify(
            candidate,
            reference,
            text=text or section.text or reference_model.evaluation_text(),
            baseline=baseline,
            options=options,
            on_progress=step,
        )
    terminal.show(report, as_json=json)
    report.require_passed()


@app.command()
def bench(
    candidate: Annotated[Path, typer.Argument(help="The engine to time.")],
    *,
    baseline: Annotated[Path, typer.Option(help="The dense engine.", show_default=False)],
    prompt_length: Annotated[list[int] | None, typer.Option(help="Tokens of a prefill; repeatable.")] = None,
    context_length: Annotated[list[int] | None, typer.Option(help="Tokens in the cache; repeatable.")] = None,
    recipe: RecipeFile = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Time an engine against the dense one, alternating in one process."""
    from hlap_export.bench import BenchOptions

    section = effective_recipe(recipe, None).bench
    engines = (model_at(candidate, kind="engine"), model_at(baseline, kind="engine"))
    lengths = {
        "prompt_lengths": tuple(prompt_length or section.prompt_lengths),
        "context_lengths": tuple(context_length or section.context_lengths),
    }
    terminal.budget().allow(bench_needs(*engines, **lengths), candidate)
    with terminal.progress().stage("bench") as step:
        report = hlap_export.bench(
            candidate,
            baseline,
            **lengths,
            options=BenchOptions(repeats=section.repeats),
            on_progress=step,
        )
    terminal.show(report, as_json=json)


@app.command()
def generate(
    engine: Annotated[Path, typer.Argument(help="The engine that writes.")],
    *,
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on with; left out, each line that is typed.", show_default=False)
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Write at most so many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Only the k likeliest tokens; 0 for no limit.")] = 0,
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens of this joint probability.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Another seed, another text, above temperature 0.")] = 0,
    chat: Annotated[bool, typer.Option("--chat", help="Talk: through the model's chat template.")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let an engine write: it goes on with a prompt, or answers in a chat."""
    from hlap_export.generate import Generator, Sampling, converse, ignore_text

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    lines = terminal.typed_lines() if prompt is None else [prompt]
    with Generator(engine, sampling=sampling) as generator:
        on_text = ignore_text if json else terminal.write_text
        for made in converse(generator, lines, chat=chat, max_new_tokens=max_new_tokens, on_text=on_text):
            terminal.end_text(made, as_json=json)


@app.command()
def bundle(
    engine: Annotated[Path, typer.Argument(help="The engine to serve.")],
    *,
    out: OutFolder,
    target: Annotated[str, typer.Option(help="ort-genai: the folder that onnxruntime-genai loads.")] = "ort-genai",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Put an engine into the form that a serving stack loads."""
    with terminal.progress().stage("bundle"):
        hlap_export.bundle(engine, out, target=target)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, plan, export, engine, bundle or run.")],
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Say what an artefact is, layer by layer."""
    terminal.show(hlap_export.inspect(path), as_json=json)


@app.command()
def doctor(json: Json = False, debug: Debug = False) -> None:
    """Say which engines can build and run here, and why the others can't."""
    terminal.show(hlap_export.doctor(), as_json=json)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--debug" in given
    if not show_traceback:
        _quiet_libraries()
    try:
        app(args=given, prog_name="hlap-export")
    except SystemExit as leaving:
        if leaving.code == 130:
            terminal.print_error(
                "interrupted: the same command, for `run` with --resume, goes on from what is finished"
            )
        raise
    except Exception as error:
        if show_traceback:
            raise
        terminal.print_error(_paragraph(error))
        sys.exit(error.exit_code if isinstance(error, HlapError) else 1)
    sys.exit(0)


def _quiet_libraries() -> None:
    """Keep transformers' own bars and warnings off the screen; read by it when it is imported."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def _paragraph(error: Exception) -> str:
    """What went wrong, for a person."""
    if isinstance(error, HlapError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory. Fix: close other programs, or take a smaller model, dtype or length"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}. Fix: check the path, its permissions and the disk's free space"
    return f"{type(error).__name__}: {error}. This is a bug, or a case nobody thought of: run with --debug to see where"


if __name__ == "__main__":
    main()
