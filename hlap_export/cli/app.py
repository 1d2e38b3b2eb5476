"""The list of verbs, in the order that `--help` shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

import hlap_export
from hlap_export.cli.verbs import (
    bench,
    build,
    bundle,
    compare,
    doctor,
    evaluate,
    export,
    gate,
    generate,
    inspect,
    lint,
    plan,
    prune,
    run,
    verify,
    verify_manifest,
)

VERBS: dict[str, Callable[..., Any]] = {
    "run": run.run,
    "plan": plan.plan,
    "prune": prune.prune,
    "export": export.export,
    "lint": lint.lint,
    "build": build.build,
    "verify": verify.verify,
    "bench": bench.bench,
    "compare": compare.compare,
    "gate": gate.gate,
    "eval": evaluate.evaluate,
    "generate": generate.generate,
    "bundle": bundle.bundle,
    "inspect": inspect.inspect,
    "verify-manifest": verify_manifest.verify_manifest,
    "doctor": doctor.doctor,
}

app = typer.Typer(
    name="hlap-export",
    help="Prune the high attention layers of a decoder LLM and ship it as a smaller, verified engine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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


for name, verb in VERBS.items():
    app.command(name)(verb)
