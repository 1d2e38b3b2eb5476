"""Each part's own error: what it makes of the very input that it had in the engine, against float32 torch.

Errors of earlier layers are in both, so that they don't add up, and a fault shows in the part that has it alone.

Shapes: T tokens, D hidden, F features of a tensor, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hlap_export.verify.graph_names import EMBEDDING

if TYPE_CHECKING:
    import torch

    from hlap_export.checkpoint.decoder import Decoder

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Parts:
    """The checkpoint's embedding, layers and head, each fed what the engine fed its own.

    Args:
        checkpoint: that the engine was made from.
        rows: token ids [T] of each row.
        max_memory: most bytes of RAM for the whole process.
    """

    def __init__(self, checkpoint: Path, rows: Sequence[Ids], max_memory: int | None) -> None:
        from hlap_export.checkpoint.decoder import Batch, open_decoder

        longest = Batch(windows=1, length=max(row.size for row in rows))
        self._rows = rows
        self._decoder: Decoder = open_decoder(checkpoint, batch=longest, copies=len(rows), max_memory=max_memory)

    def errors(self, residual: Sequence[Mapping[int, Floats]], logits: Sequence[Floats]) -> dict[str, float]:
        """The error ratio of every part, in the order of computation: "embedding", "layer 0", ..., "head".

        Args:
            residual: of each row the engine's residual stream [T, D] after each layer and before the first; what is
                missing is taken from the reference, and its error counts for the next part that isn't.
            logits: of each row, the engine's [T, V].
        """
        import torch

        with torch.inference_mode():
            states = [self._decoder.embed(torch.tensor(row)[None]) for row in self._rows]
            errors = {"embedding": _worst(states, residual, EMBEDDING)}
            states = _replaced(states, residual, EMBEDDING)
            for index in range(self._decoder.num_layers):
                with self._decoder.layer(index) as layer:
                    states = [layer(h_NTD) for h_NTD in states]
                errors[f"layer {index}"] = _worst(states, residual, index)
                states = _replaced(states, residual, index)
            expected = [self._decoder.head.logits(h_NTD)[0].numpy() for h_NTD in states]
        errors["head"] = max(error_ratio(ours, theirs) for ours, theirs in zip(logits, expected, strict=True))
        return errors

    def tensors(
        self, layer: int, inputs: Sequence[Floats], without_bias: Collection[str] = ()
    ) -> list[dict[str, Floats]]:
        """What the layer's modules make of each row's input [T, D], in the order of computation, by module path.

        Of the modules in `without_bias` it is what they make before they add their bias.
        """
        import torch

        with torch.inference_mode(), self._decoder.layer(layer) as loaded:
            made = [_module_outputs(loaded.module, lambda h=h_TD: loaded(torch.tensor(h)[None])) for h_TD in inputs]
            for name in without_bias:
                bias = loaded.module.get_submodule(name).bias.cpu().numpy()
                for outputs in made:
                    outputs[name] = outputs[name] - bias
        return made

    def embedded(self) -> list[Floats]:
        """The reference's residual stream [T, D] of each row before layer 0."""
        import torch

        with torch.inference_mode():
            return [self._decoder.embed(torch.tensor(row)[None])[0].numpy() for row in self._rows]


def error_ratio(found_TF: Floats, expected_TF: Floats) -> float:
    """|Δ| / |expected| of the worst token, norms over the features."""
    difference = np.linalg.norm(found_TF.astype(np.float64) - expected_TF, axis=-1)
    size = np.linalg.norm(expected_TF.astype(np.float64), axis=-1)
    ratio = float(np.max(difference / np.maximum(size, np.finfo(np.float32).tiny)))
    return ratio if np.isfinite(ratio) else float(np.finfo(np.float32).max)


def _worst(states: Sequence[torch.Tensor], residual: Sequence[Mapping[int, Floats]], layer: int) -> float:
    return max(
        (
            error_ratio(found[layer], h_NTD[0].cpu().numpy())
            for h_NTD, found in zip(states, residual, strict=True)
            if layer in found
        ),
        default=0.0,
    )


def _replaced(
    states: Sequence[torch.Tensor], residual: Sequence[Mapping[int, Floats]], layer: int
) -> list[torch.Tensor]:
    """The engine's own states, where they are known."""
    import torch

    return [
        torch.tensor(found[layer])[None] if layer in found else h_NTD
        for h_NTD, found in zip(states, residual, strict=True)
    ]


def _module_outputs(layer: Any, call: Callable[[], object]) -> dict[str, Floats]:
    """Call a layer and keep what its modules put out; "self_attn" and "mlp" is what their last projection reads."""
    kept: dict[str, Floats] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: Any, inputs: Any, output: Any = None) -> None:
            tensor = inputs[0] if output is None else output
            kept[name] = tensor[0].float().cpu().numpy()

        return keep

    modules = {name: module for name, module in layer.named_modules() if name not in ("", "self_attn", "mlp")}
    hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    for parent, last in (("self_attn", "self_attn.o_proj"), ("mlp", "mlp.down_proj")):
        if last in modules:
            hooks.append(modules[last].register_forward_pre_hook(keeper(parent)))
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return _with_packed_projections(kept)


def _with_packed_projections(kept: dict[str, Floats]) -> dict[str, Floats]:
    """Also queries, keys and values side by side, as engines compute them, after the last of the three."""
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    if not all(name in kept for name in names):
        return kept
    packed = {"self_attn.qkv_proj": np.concatenate([kept[name] for name in names], axis=-1)}
    last = max(list(kept).index(name) for name in names) + 1
    items = list(kept.items())
    return dict(items[:last]) | packed | dict(items[last:])
