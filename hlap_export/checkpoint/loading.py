"""Load a checkpoint, dense or pruned, as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hlap_export.checkpoint import remote_code
from hlap_export.checkpoint.layout import read_config, read_layout, stock_config
from hlap_export.checkpoint.tensors import EMBEDDING, HEAD, CheckpointTensors, open_tensors
from hlap_export.errors import CheckpointError
from hlap_export.families import family_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(model: Path, *, dtype: torch.dtype, attention: str | None = None) -> PreTrainedModel:
    """The model in evaluation mode, its weights converted to `dtype`.

    Code in the folder is never run: pruned checkpoints use this package's own copy of the modeling code.

    Args:
        model: a checkpoint folder.
        dtype: the dtype to compute in.
        attention: transformers' attention implementation ("eager", "sdpa"); None takes the architecture's default.

    Raises:
        CheckpointError: unreadable, unsupported, or config and weights disagree.
    """
    check_weights(model)
    model_class = model_class_of(model)
    loaded = model_class.from_pretrained(model, dtype=dtype, attn_implementation=attention, local_files_only=True)
    return loaded.eval()


def model_class_of(model: Path) -> Any:
    """The class that runs the checkpoint: transformers' own, or the layer-wise pruned one."""
    import transformers

    layout, config = read_layout(model), read_config(model)
    if config["model_type"] == layout.family.pruned_model_type:
        return remote_code.model_class(layout.family)
    return getattr(transformers, layout.family.model_class)


def expected_shapes(model: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that config.json implies, from the model built without memory for weights."""
    import torch

    model_class = model_class_of(model)
    with torch.device("meta"):
        skeleton = model_class(model_class.config_class.from_pretrained(model, local_files_only=True))
    return {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}


def check_weights(model: Path) -> CheckpointTensors:
    """Check that the safetensors hold what config.json implies: the same names and shapes.

    Raises:
        CheckpointError: unreadable, unsupported, incomplete, or config and weights disagree.
    """
    tensors = open_tensors(model)
    found = {name: record.shape for name, record in tensors.by_name.items() if not name.endswith("rotary_emb.inv_freq")}
    expected = expected_shapes(model)
    # transformers stores a tied pair as the embedding, `safetensors.torch.save_model` as the head.
    if read_layout(model).tied_embeddings and (absent := [name for name in (HEAD, EMBEDDING) if name not in found]):
        expected.pop(absent[0])
    problems = [f"{name} missing" for name in sorted(expected.keys() - found.keys())]
    problems += [f"{name} unknown to the architecture" for name in sorted(found.keys() - expected.keys())]
    problems += [
        f"{name} of shape {list(found[name])} where config.json implies {list(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if expected[name] != found[name]
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise CheckpointError(
            where=str(model),
            expected="weights with the names and shapes that config.json implies",
            found=problems[0] + more,
            fix="config.json and the safetensors files must come from the same model: restore them together",
        )
    return tensors


def load_tokenizer(model: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, from local files.

    Args:
        model: a checkpoint, export or engine folder.
        trust_remote_code: whether a tokenizer class that the folder brings along may be executed.

    Raises:
        CheckpointError: there is none, or it can't be read.
    """
    from transformers import AutoTokenizer

    config, where = read_config(model), str(model / "config.json")
    family = family_of(config, where)
    try:
        tokenizer = cast(Any, AutoTokenizer)  # its stubs leave the return type open
        return tokenizer.from_pretrained(
            model,
            config=stock_config(family, config, where),  # else transformers warns of a pruned model's type
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except Exception as error:  # missing and damaged tokenizers raise half a dozen unrelated types
        raise CheckpointError(
            where=str(model),
            expected="a tokenizer (tokenizer.json, tokenizer_config.json)",
            found=" ".join(str(error).split())[:200],
            fix="copy the tokenizer files of the original model into the folder",
        ) from error
