"""How many weights a model has, from its layout alone: what every estimate of memory, disk and time begins with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from hlap_export.artifacts import MANIFEST, read_manifest
from hlap_export.checkpoint.layout import LayerAttention, ModelLayout, read_config, read_layout
from hlap_export.checkpoint.tensors import open_tensors
from hlap_export.errors import CheckpointError

STORED_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
FLAVOURS_WITH_ROTARY_TABLES = ("ort", "trt")

WEIGHT_BYTES = {"int8": 1.0, "int4": 0.5}
ZERO_POINT_BYTES = {"int8": 1.0, "int4": 0.0}
DEFAULT_BLOCK_SIZE = 32


def quantised_bytes(dtype: str, block_size: int) -> float:
    """Bytes of a weight with its part of the block's scale (float32) and zero point."""
    return WEIGHT_BYTES[dtype] + (4 + ZERO_POINT_BYTES[dtype]) / block_size


QUANTISED_BYTES = {dtype: quantised_bytes(dtype, DEFAULT_BLOCK_SIZE) for dtype in WEIGHT_BYTES}
BYTES = {"float64": 8.0, "float32": 4.0, "float16": 2.0, "bfloat16": 2.0, **QUANTISED_BYTES}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """A model as far as estimates need it: its shapes, and how its weights are stored.

    Attributes:
        dtype: of the weights.
        flavour: of an export or engine; None for a checkpoint.
        block_size: of int8 and int4: so many weights share a scale. None for `DEFAULT_BLOCK_SIZE`.
    """

    layout: ModelLayout
    dtype: str
    flavour: str | None = None
    block_size: int | None = None


def model_at(folder: Path, *, kind: str | None = None) -> Model:
    """The model in a checkpoint, export or engine folder; no weights are read.

    Args:
        folder: where it lies.
        kind: what its manifest must say that it is ("onnx", "engine"); None for any checkpoint.

    Raises:
        ArtefactError: not of that kind.
        CheckpointError: no config.json, or one that can't be understood.
    """
    if kind is not None:
        read_manifest(folder, kind=kind)
    parameters = read_manifest(folder).parameters if (folder / MANIFEST).is_file() else {}
    return Model(
        layout=read_layout(folder),
        dtype=parameters.get("dtype") or _dtype_of(folder),
        flavour=parameters.get("flavour"),
        block_size=parameters.get("block_size"),
    )


def _dtype_of(folder: Path) -> str:
    try:
        records = open_tensors(folder).by_name.values()
    except CheckpointError:
        config = read_config(folder)
        named = str(config.get("dtype") or config.get("torch_dtype"))
        return named if named in BYTES else "float32"
    return STORED_DTYPES.get(max(records, key=lambda record: record.size_bytes).dtype, "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """A weight matrix by its role and shape; `count` of them lie in one layer, or in the model."""

    name: str
    rows: int
    columns: int
    count: int = 1

    @property
    def num_values(self) -> int:
        return self.count * self.rows * self.columns

    @property
    def text(self) -> str:
        """The arithmetic: "mlp 3 × 14336 × 4096"."""
        return f"{self.name} {f'{self.count} × ' if self.count > 1 else ''}{self.rows} × {self.columns}"


def layer_matrices(layout: ModelLayout, layer: LayerAttention) -> tuple[Matrix, ...]:
    """The matrices of one decoder layer."""
    hidden, head = layout.hidden_size, layout.head_dim
    value_rows = layer.num_kv_heads * head
    mlp = (Matrix(name="mlp", rows=layout.intermediate_size, columns=hidden, count=3),) if layer.has_mlp else ()
    match layer.kind:
        case "skip":
            return mlp
        case "value_only":  # folded: o_proj takes each KV head once
            return (Matrix(name="v, o", rows=value_rows, columns=hidden, count=2), *mlp)
        case "linear":
            if layer.linear_rank == 0:
                return (Matrix(name="map", rows=hidden, columns=hidden), *mlp)
            return (Matrix(name="v, o", rows=layer.linear_rank, columns=hidden, count=2), *mlp)
        case "full":
            queries = Matrix(name="q, o", rows=layer.num_heads * head, columns=hidden, count=2)
            return (queries, Matrix(name="k, v", rows=value_rows, columns=hidden, count=2), *mlp)


def layer_vectors(layout: ModelLayout, layer: LayerAttention) -> int:
    """Values in a layer's norms and biases."""
    hidden, head, family = layout.hidden_size, layout.head_dim, layout.family
    norms = hidden * (2 if family.has_post_norms else 1)
    mlp_norms = norms if layer.has_mlp else 0
    if layer.kind == "skip":
        return mlp_norms
    if layer.kind == "linear":  # its input norm and its bias
        return mlp_norms + 2 * hidden
    biases = layout.biases
    if layer.kind == "value_only":  # the value's bias has moved through o_proj
        return mlp_norms + norms + (hidden if biases.qkv or biases.output else 0)
    qkv_bias = (layer.num_heads + 2 * layer.num_kv_heads) * head if biases.qkv else 0
    head_norms = 2 * head if family.query_key_norms else 0
    return mlp_norms + norms + head_norms + qkv_bias + (hidden if biases.output else 0)


def layer_values(layout: ModelLayout, layer: LayerAttention) -> int:
    """All values of one decoder layer."""
    return sum(matrix.num_values for matrix in layer_matrices(layout, layer)) + layer_vectors(layout, layer)


def embedding(layout: ModelLayout) -> Matrix:
    """The embedding, which is the head too where they are tied."""
    return Matrix(name="embedding", rows=layout.vocab_size, columns=layout.hidden_size)


def num_weights(layout: ModelLayout) -> int:
    """All values of the model, tied ones once: what its safetensors hold."""
    ends = embedding(layout).num_values * (1 if layout.tied_embeddings else 2)
    return ends + sum(layer_values(layout, layer) for layer in layout.layers) + layout.hidden_size


def weights_text(layout: ModelLayout) -> str:
    """The arithmetic of `num_weights`, equal layers together."""
    ends = f"{'' if layout.tied_embeddings else '2 × '}{layout.vocab_size} × {layout.hidden_size} (embedding"
    parts = [f"{ends}{')' if layout.tied_embeddings else ', head)'}"]
    for kind, layers in groupby(layout.layers, key=lambda layer: replace(layer, index=0)):
        alike = list(layers)
        inside = "".join(f"{matrix.text} + " for matrix in layer_matrices(layout, alike[0]))
        vectors = layer_vectors(layout, alike[0])
        parts.append(f"{len(alike)} × ({inside}norms, biases {vectors}) [{kind.kind.replace('_', ' ')}]")
    return " + ".join([*parts, f"{layout.hidden_size} (last norm)"])


def stored_bytes(model: Model) -> int:
    """Bytes of all weights in the model's dtype, and of the rotary tables that come on top in some flavours.

    Quantised models keep norms and biases in float32, and an embedding that is no head in 8 bits.
    """
    layout = model.layout
    if model.dtype not in QUANTISED_BYTES:
        return int(num_weights(layout) * BYTES[model.dtype]) + rotary_table_bytes(model)
    vectors = layout.hidden_size + sum(layer_vectors(layout, layer) for layer in layout.layers)
    looked_up = 0 if layout.tied_embeddings else embedding(layout).num_values
    multiplied = num_weights(layout) - vectors - looked_up
    weight, row = (quantised_bytes(each, model.block_size or DEFAULT_BLOCK_SIZE) for each in (model.dtype, "int8"))
    return int(multiplied * weight + looked_up * row + vectors * BYTES["float32"]) + rotary_table_bytes(model)


def rotary_table_bytes(model: Model) -> int:
    """Bytes of the sines and cosines of every position, half a head of each, where a flavour keeps them as tables."""
    layout = model.layout
    if model.flavour not in FLAVOURS_WITH_ROTARY_TABLES or not layout.cached_layers:
        return 0
    return int(layout.max_positions * layout.head_dim * _activation_bytes(model))


def _activation_bytes(model: Model) -> float:
    """Of one number that is no weight; quantised models compute in float32."""
    return BYTES["float32" if model.dtype in QUANTISED_BYTES else model.dtype]


def kv_values_per_token(layout: ModelLayout) -> int:
    """Values that one token adds to the cache: keys and values of the layers that attend."""
    return sum(2 * layer.num_kv_heads * layout.head_dim for layer in layout.cached_layers)


def kv_bytes_per_token(model: Model) -> int:
    """Bytes that one token adds to the cache; quantised weights leave it in float32."""
    return int(kv_values_per_token(model.layout) * _activation_bytes(model))
