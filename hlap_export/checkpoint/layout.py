"""The shapes of a model, layer by layer, from its config.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from hlap_export.errors import CheckpointError
from hlap_export.families import Biases, Family, family_of

AttentionKind = Literal["full", "value_only", "linear", "skip"]

# Keys of config.json that only a pruned checkpoint has; the stock config classes don't know them.
PRUNED_KEYS = ("per_layer_config", "attention_kind", "value_only_output_bias", "linear_rank", "auto_map", "model_type")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerAttention:
    """What one decoder layer is made of; heads are 0 where there are none.

    Attributes:
        kind: "full" keeps a KV cache; "value_only" is `o_proj(v_proj(x))`; "linear" is a fitted map of this form, or
            a single matrix; "skip" has nothing.
        num_heads: query heads (value-only: the query heads that the fold summed over, per KV head).
        num_kv_heads: KV heads.
        linear_rank: rows of a linear map's first matrix; 0 for a single one, and in layers of any other kind.
        has_mlp: whether the MLP half is there.
    """

    index: int
    kind: AttentionKind
    num_heads: int
    num_kv_heads: int
    linear_rank: int = 0
    has_mlp: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelLayout:
    """Dimensions of a decoder; `num_heads` and `num_kv_heads` are the dense model's, the layers' own may be fewer.

    Attributes:
        layer_types: each layer's kind of attention ("full_attention", "sliding_attention"), None where the family
            has but one kind.
        rope_type: how rotary frequencies are scaled, as transformers names it ("default", "llama3", "yarn", ...).
    """

    family: Family
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    head_dim: int
    num_heads: int
    num_kv_heads: int
    max_positions: int
    sliding_window: int | None
    tied_embeddings: bool
    layer_types: tuple[str, ...] | None
    rope_type: str
    biases: Biases
    layers: tuple[LayerAttention, ...]

    @property
    def cached_layers(self) -> tuple[LayerAttention, ...]:
        """The layers that keep a KV cache, in order."""
        return tuple(layer for layer in self.layers if layer.kind == "full")

    @property
    def is_dense(self) -> bool:
        """Whether every layer has the full attention of the config's global head counts, and its MLP."""
        return all(
            layer.kind == "full" and layer.num_heads == self.num_heads and layer.has_mlp for layer in self.layers
        )

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV head in the dense model."""
        return self.num_heads // self.num_kv_heads


def read_config(model: Path) -> dict[str, Any]:
    """The folder's config.json as it is.

    Raises:
        CheckpointError: there is no such folder or file, or it isn't a JSON object.
    """
    path = model / "config.json"
    if not path.is_file():
        raise CheckpointError(
            where=str(model),
            expected="a Hugging Face checkpoint folder with config.json",
            found="no config.json in it" if model.is_dir() else "no such folder",
            fix="check the path; a hub model must be downloaded first (huggingface-cli download)",
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(
            where=str(path), expected="JSON", found=str(error), fix="restore the file from the original model"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(
            where=str(path), expected="a JSON object", found=type(config).__name__, fix="restore the original file"
        )
    return cast(dict[str, Any], config)


def read_layout(model: Path) -> ModelLayout:
    """The layout of a dense or pruned checkpoint folder.

    Raises:
        CheckpointError: no config, an unsupported family, or values that contradict each other.
    """
    return layout_of(read_config(model), where=str(model / "config.json"))


def layout_of(config: Mapping[str, Any], where: str = "config.json") -> ModelLayout:
    """The layout that a config.json describes; missing keys take the architecture's defaults.

    Raises:
        CheckpointError: an unsupported family, or values that contradict each other.
    """
    family = family_of(config, where)
    _refuse_foreign_code(family, config, where)
    _refuse_quantised(config, where)
    full = stock_config(family, config, where)
    num_heads, num_kv_heads = int(full.num_attention_heads), int(full.num_key_value_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError(
            where=where,
            expected="num_attention_heads to be a multiple of num_key_value_heads",
            found=f"{num_heads} and {num_kv_heads}",
            fix="the config is damaged: restore the original",
        )
    return ModelLayout(
        family=family,
        num_layers=full.num_hidden_layers,
        hidden_size=full.hidden_size,
        intermediate_size=full.intermediate_size,
        vocab_size=full.vocab_size,
        head_dim=getattr(full, "head_dim", None) or full.hidden_size // num_heads,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        max_positions=full.max_position_embeddings,
        sliding_window=getattr(full, "sliding_window", None),
        tied_embeddings=bool(full.tie_word_embeddings),
        layer_types=tuple(full.layer_types) if getattr(full, "layer_types", None) else None,
        rope_type=cast(dict[str, str], getattr(full, "rope_parameters", None) or {}).get("rope_type", "default"),
        biases=family.biases(config),
        layers=_layers(config, full.num_hidden_layers, num_heads, num_kv_heads),
    )


def _refuse_foreign_code(family: Family, config: Mapping[str, Any], where: str) -> None:
    """Refuse a model that names its own modeling code: the stock class in its place would be silently wrong."""
    auto_map = cast(dict[str, str], config.get("auto_map") or {})
    code = {name: place for name, place in auto_map.items() if name.startswith("AutoModel")}
    if code and config["model_type"] != family.pruned_model_type:
        raise CheckpointError(
            where=where,
            expected=f"a model that transformers' own {family.model_class} runs",
            found=f"one that brings its own code ({next(iter(code.values()))}), which is never executed",
            fix="use the family's standard checkpoint; if its code changes nothing, delete auto_map from config.json",
        )


def _refuse_quantised(config: Mapping[str, Any], where: str) -> None:
    """Refuse weights that are packed or scaled integers: folds need the numbers themselves."""
    if quantisation := config.get("quantization_config"):
        raise CheckpointError(
            where=where,
            expected="floating-point weights",
            found=f"a quantised checkpoint ({quantisation.get('quant_method', 'unknown method')})",
            fix="prune the model that it was quantised from, and quantise afterwards",
        )


def stock_config(family: Family, config: Mapping[str, Any], where: str) -> Any:
    """The config as transformers' own class of the family, which fills in defaults and checks types.

    Raises:
        CheckpointError: transformers refuses a value.
    """
    import transformers

    stock = getattr(transformers, family.config_class)
    try:
        return stock(**{key: value for key, value in config.items() if key not in PRUNED_KEYS})
    except Exception as error:  # transformers raises many types here, all of them about the values
        raise CheckpointError(
            where=where,
            expected=f"a valid {family.config_class}",
            found=" ".join(str(error).split()),
            fix="correct config.json, or restore it from the original model",
        ) from error


def _layers(
    config: Mapping[str, Any], num_layers: int, num_heads: int, num_kv_heads: int
) -> tuple[LayerAttention, ...]:
    raw: Mapping[str, Mapping[str, Any]] = config.get("per_layer_config") or {}
    overrides = {int(index): override for index, override in raw.items()}
    layers: list[LayerAttention] = []
    for index in range(num_layers):
        override = overrides.get(index, {})
        skipped: Sequence[str] = override.get("skip", ())
        kind = "skip" if "attention" in skipped else override.get("attention_kind", "full")
        has_heads = kind in ("full", "value_only")
        layers.append(
            LayerAttention(
                index=index,
                kind=kind,
                num_heads=override.get("num_attention_heads", num_heads) if has_heads else 0,
                num_kv_heads=override.get("num_key_value_heads", num_kv_heads) if has_heads else 0,
                linear_rank=override.get("linear_rank", 0),
                has_mlp="mlp" not in skipped,
            )
        )
    return tuple(layers)
