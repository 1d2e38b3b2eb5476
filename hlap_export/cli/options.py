"""Arguments and flags that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
