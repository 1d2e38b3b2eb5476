"""The plan at a glance: one small picture per layer, which the page puts in rows as wide as it is.

A square is a query head, a row of them a KV group. A value-only layer has its KV groups but no queries, a linear one
is one solid block, a layer without attention is empty. Where MLPs change, a bar below stands for the MLP. Below the
layer's number stands alpha.
"""

from __future__ import annotations

from dataclasses import dataclass

from hlap_export.report.charts.markup import element, hint, picture, words
from hlap_export.report.summary import LayerRow

WIDTH = 34.0
MAX_HEIGHT = 72.0
MIN_HEIGHT = 22.0
ALPHA_HEIGHT = 34.0
LABEL_HEIGHT = 15.0
MLP_HEIGHT = 7.0
MLP_STYLES = {"keep": "mlp", "refit": "linear", "skip": "none"}
GAP = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """The dense layer's heads, which every column is drawn on."""

    groups: int
    heads_per_group: int
    shows_mlp: bool

    @property
    def height(self) -> float:
        """Of the heads: squares, as long as that is neither too high nor too low."""
        return min(MAX_HEIGHT, max(MIN_HEIGHT, self.groups * WIDTH / self.heads_per_group))


def layer_columns(layers: tuple[LayerRow, ...]) -> list[str]:
    """One picture per layer, the embedding's side first, all of one scale: larger where there are few."""
    groups = max(layer.num_kv_heads for layer in layers)
    heads = max(layer.num_heads for layer in layers)
    shows_mlp = any(layer.mlp != "keep" for layer in layers)
    grid = Grid(groups=groups, heads_per_group=heads // groups, shows_mlp=shows_mlp)
    enlarged = 1.5 if len(layers) <= 16 else 1.2 if len(layers) <= 36 else 1.0
    return [_column(layer, grid, enlarged) for layer in layers]


def _column(layer: LayerRow, grid: Grid, enlarged: float) -> str:
    said = describe(layer)
    parts = [hint(said), _heads(layer, grid)]
    height = grid.height
    if grid.shows_mlp:
        parts.append(_box(MLP_STYLES[layer.mlp], 0, height, (WIDTH - GAP, MLP_HEIGHT - GAP)))
        height += MLP_HEIGHT
    parts.append(_index(layer, height))
    height += LABEL_HEIGHT
    if layer.alpha is not None:
        parts.append(_alpha(layer.alpha, height))
        height += ALPHA_HEIGHT
    size = {"width": WIDTH * enlarged, "height": height * enlarged}
    return picture(WIDTH, height, *parts, label=said, class_="layer", **size)


def describe(layer: LayerRow) -> str:
    """A layer in words."""
    mlp = {"keep": "", "refit": "; its MLP fitted anew", "skip": "; no MLP"}[layer.mlp]
    if layer.attention == "full":
        return f"layer {layer.layer}: {layer.num_heads} query heads in {layer.num_kv_heads} KV groups{mlp}"
    alpha = "" if layer.alpha is None or layer.attention == "skip" else f", alpha {layer.alpha:g}"
    kind = {"value_only": "value only", "skip": "no attention", "linear": "a fitted linear map"}[layer.attention]
    return f"layer {layer.layer}: {kind}{alpha}, no KV cache{mlp}"


def _heads(layer: LayerRow, grid: Grid) -> str:
    if layer.attention == "skip":
        return _block("none", 0, grid.height)
    if layer.attention == "linear":
        return _block("linear", 0, grid.height)
    pitch = grid.height / grid.groups
    gap = min(GAP, pitch / 4)
    if layer.attention == "value_only":
        return "".join(_block("value", row * pitch, pitch - gap) for row in range(layer.num_kv_heads))
    kept = layer.num_heads // layer.num_kv_heads
    width = WIDTH / grid.heads_per_group
    size = (width - min(GAP, width / 4), pitch - gap)
    return "".join(
        _box("full" if row < layer.num_kv_heads and column < kept else "none", column * width, row * pitch, size)
        for row in range(grid.groups)
        for column in range(grid.heads_per_group)
    )


def _block(style: str, y: float, height: float) -> str:
    """A layer or a KV group as one piece."""
    return _box(style, 0, y, (WIDTH - GAP, height))


def _box(style: str, x: float, y: float, size: tuple[float, float]) -> str:
    """A rectangle; where it is an outline, its stroke lies inside."""
    inset = 0.4 if style == "none" else 0.0
    width, height = size[0] - 2 * inset, size[1] - 2 * inset
    return element(
        "rect", x=x + inset, y=y + inset, width=width, height=height, rx=min(1.5, height / 5), class_=f"head {style}"
    )


def _index(layer: LayerRow, top: float) -> str:
    style = "tick changed" if layer.is_pruned else "tick"
    return words(str(layer.layer), (WIDTH - GAP) / 2, top + 12, class_=style, text_anchor="middle")


def _alpha(alpha: float, top: float) -> str:
    """A bar from the floor, as high as alpha is large, its value above it."""
    height = max((ALPHA_HEIGHT - 13) * alpha, 1.0)
    floor = top + ALPHA_HEIGHT - 1
    bar = element("rect", x=6, y=floor - height, width=WIDTH - GAP - 12, height=height, class_="alpha")
    return bar + words(f"{alpha:g}", (WIDTH - GAP) / 2, floor - height - 3, class_="tick", text_anchor="middle")
