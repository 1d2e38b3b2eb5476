"""Load a checkpoint, dense or pruned, as a transformers model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hlap_export.checkpoint import remote_code
from hlap_export.checkpoint.layout import read_config
from hlap_export.checkpoint.tensors import open_tensors
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
    import transformers

    config = read_config(model)
    family = family_of(config, str(model / "config.json"))
    open_tensors(model)
    is_pruned = config["model_type"] == family.pruned_model_type
    model_class: Any = remote_code.model_class(family) if is_pruned else getattr(transformers, family.model_class)
    try:
        loaded, report = model_class.from_pretrained(
            model, dtype=dtype, attn_implementation=attention, local_files_only=True, output_loading_info=True
        )
    except (RuntimeError, ValueError) as error:
        raise _disagreement(model, " ".join(str(error).split())) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in report[problem]):
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise _disagreement(model, f"{problem.replace('_keys', ' tensors')} {listed}")
    return loaded.eval()


def _disagreement(model: Path, found: str) -> CheckpointError:
    return CheckpointError(
        where=str(model),
        expected="weights with the names and shapes that config.json implies",
        found=found,
        fix="config.json and the safetensors files must come from the same model: restore them together",
    )


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, from local files.

    Raises:
        CheckpointError: there is none, or it can't be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # missing and damaged tokenizers raise half a dozen unrelated types
        raise CheckpointError(
            where=str(model),
            expected="a tokenizer (tokenizer.json, tokenizer_config.json)",
            found=" ".join(str(error).split())[:200],
            fix="copy the tokenizer files of the original model into the folder",
        ) from error
