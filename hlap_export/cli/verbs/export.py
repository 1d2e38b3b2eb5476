"""`hlap-export export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import hlap_export
from hlap_export import terminal
from hlap_export.budget import export_needs, model_at
from hlap_export.cli.options import Debug, Json, MaxMemory, OutFolder


def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint folder, dense or pruned.")],
    *,
    out: OutFolder,
    flavour: Annotated[
        str,
        typer.Option(
            help="portable: plain ONNX operators; ort: ONNX Runtime's own; trt: what TensorRT has kernels for."
        ),
    ] = "portable",
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
    needs = export_needs(model_at(checkpoint), dtype, flavour=flavour, block_size=block_size)
    terminal.budget(max_memory).allow(needs, out)
    with terminal.progress().stage("export", in_bytes=True) as step:
        hlap_export.export(checkpoint, out, flavour=flavour, dtype=dtype, block_size=block_size, on_progress=step)
    terminal.show(hlap_export.inspect(out, check_files=False), as_json=json)  # hashed while it was written
