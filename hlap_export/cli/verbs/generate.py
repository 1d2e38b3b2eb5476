"""`hlap-export generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hlap_export import terminal
from hlap_export.budget import generate_needs, model_at
from hlap_export.cli.options import Debug, Json, MaxMemory


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
    max_memory: MaxMemory = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let an engine write: it goes on with a prompt, or answers in a chat."""
    from hlap_export.generate import Generator, Sampling, converse, ignore_text

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    needs = generate_needs(model_at(engine, kind="engine"), max_new_tokens=max_new_tokens)
    terminal.budget(max_memory).allow(needs, engine)
    lines = terminal.typed_lines() if prompt is None else [prompt]
    talking = prompt is None and terminal.someone_types()
    tell, on_text = terminal.print_line if talking else None, ignore_text if json else terminal.write_text
    with Generator(engine, sampling=sampling, interruptible=talking) as generator:
        for made in converse(generator, lines, chat=chat, max_new_tokens=max_new_tokens, on_text=on_text, tell=tell):
            terminal.end_text(made, as_json=json)
