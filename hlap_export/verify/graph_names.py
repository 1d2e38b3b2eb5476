"""Which values of an engine's graph are which tensors of its checkpoint: nodes are named for the modules they are of.

A layer's output is the sum of the residual stream and the MLP: an addition of the layer's own, or a second output of
the norm that follows, where addition and norm are one operator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.engines import GraphValue

EMBEDDING = -1
"""In place of a layer's index: the residual stream before layer 0."""

SKIP_NORMS = ("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
SUM_OUTPUT = 3
"""Which output of such a norm is the sum that it norms."""

BIAS_INPUT = 3
"""Which input of such a norm is a vector that it adds to the sum."""

MATMULS = ("MatMul", "MatMulNBits", "Gemm", "Add")


def residual_values(values: Sequence[GraphValue], layout: ModelLayout) -> dict[int, str]:
    """The residual stream's name after each layer, and before the first; a layer whose name isn't found is left out."""
    found = {EMBEDDING: _embedding(values)}
    for value in values:
        layer = _layer_of(value.module)
        if value.op_type in SKIP_NORMS and value.index == SUM_OUTPUT:
            if value.module == "model.norm":
                found[layout.num_layers - 1] = value.name
            elif layer is not None and _is_entry(value.module, layer, layout):
                found.setdefault(layer - 1, value.name)
        elif value.op_type == "Add" and layer is not None and value.module == f"model.layers.{layer}":
            found[layer] = value.name  # the last of them: the first is the sum after the attention
    return {layer: name for layer, name in found.items() if name is not None}


def tensor_values(values: Sequence[GraphValue], layer: int) -> dict[str, str]:
    """Names of a layer's tensors: module path without the layer's ("mlp.down_proj") -> graph value.

    "self_attn.qkv_proj" is the three projections side by side, "self_attn" what attention gives to `o_proj`, and "mlp"
    what `down_proj` reads.
    """
    prefix, found = f"model.layers.{layer}.", dict[str, str]()
    attention = f"{prefix}self_attn"
    fused = [value.op_type == "GroupQueryAttention" and value.module == attention for value in values]
    for value in values[: fused.index(True) if True in fused else 0]:
        if value.module == attention and value.op_type in MATMULS:
            found["self_attn.qkv_proj"] = value.name
    for value in values:
        if value.module.startswith(prefix) and value.index == 0:
            found[value.module.removeprefix(prefix)] = value.name  # the module's last value is its output
    return found


def biased_by_a_norm(values: Sequence[GraphValue], tensors: Mapping[str, str]) -> set[str]:
    """Of `tensor_values`, the modules whose bias the norm behind them adds: their value is without it."""
    norms = [value.inputs for value in values if value.op_type in SKIP_NORMS]
    read = {name for inputs in norms if len(inputs) > BIAS_INPUT and inputs[BIAS_INPUT] for name in inputs[:2]}
    return {module for module, name in tensors.items() if name in read and module.endswith("_proj")}


def _embedding(values: Sequence[GraphValue]) -> str | None:
    """What is added to the first attention's output."""
    modules = {value.name: value.module for value in values}
    for value in values:
        is_sum = value.module == "model.layers.0" and value.op_type == "Add"
        if is_sum or (value.op_type in SKIP_NORMS and _layer_of(value.module) == 0):
            outside = [name for name in value.inputs[:2] if not modules.get(name, "").startswith("model.layers.0")]
            return next((name for name in outside if name in modules), None)
    return None


def _is_entry(module: str, layer: int, layout: ModelLayout) -> bool:
    """Whether a norm is the first thing in its layer: without attention the MLP's is."""
    is_mlp_norm = module.endswith((".post_attention_layernorm", ".pre_feedforward_layernorm"))
    return is_mlp_norm if layout.layers[layer].kind == "skip" else module.endswith(".input_layernorm")


def _layer_of(module: str) -> int | None:
    parts = module.split(".")
    return int(parts[2]) if parts[:2] == ["model", "layers"] and len(parts) > 2 else None
