"""How a plan came about: the text, what a search found on it, and how well the fitted parts were fitted."""

from __future__ import annotations

from hlap_export.plan.layer_plan import Part, Strict


class TextWindows(Strict):
    """Which text a number was computed on: the first `num_windows` disjoint windows of `window_length` tokens."""

    name: str
    sha256: str
    num_windows: int
    window_length: int


class AlphaScore(Strict):
    """Perplexity on the calibration text with the layer's alpha at this value."""

    alpha: float
    perplexity: float


class LayerSearch(Strict):
    """The perplexity curve that decided one layer's alpha."""

    layer: int
    curve: tuple[AlphaScore, ...]

    @property
    def best(self) -> AlphaScore:
        """The lowest perplexity; ties go to the smaller alpha."""
        return min(self.curve, key=lambda score: (score.perplexity, score.alpha))


class SearchRecord(Strict):
    """How a search arrived at the plan: its text, its curves, and what the obvious alternatives would cost.

    Perplexities are on the calibration text; `all_ones` sets alpha 1 in every pruned layer, `all_dropped` alpha 0:
    None where the method has no alphas.
    """

    text: TextWindows
    perplexity_dense: float
    perplexity_planned: float
    perplexity_all_ones: float | None = None
    perplexity_all_dropped: float | None = None
    layers: tuple[LayerSearch, ...] = ()


class FittedPart(Strict):
    """How well one part of a layer was fitted.

    Attributes:
        ridge: what was added to the diagonal of the inputs' covariance, relative to its mean.
        unexplained_ratio: mean squared error over the target's variance, on calibration windows held back from the
            fit that it was measured on.
    """

    layer: int
    part: Part
    ridge: float
    unexplained_ratio: float


class Tuning(Strict):
    """What tuning all fitted weights together did.

    Attributes:
        epochs: over the windows that parts are fitted on.
        gap_nats_before: loss over the dense model's, nats per token, on windows that nothing was fitted on.
        gap_nats_after: the same once tuned.
        kept: whether that was better; if not, the weights are those of before.
    """

    epochs: int
    gap_nats_before: float
    gap_nats_after: float
    kept: bool


class FittedFile(Strict):
    """The side file with a plan's fitted weights, and how they came about.

    Attributes:
        sha256: of the whole file.
        parts: in the order in which they were fitted.
        tuning: of all of them together afterwards, where it was asked for.
    """

    sha256: str
    size_bytes: int
    parts: tuple[FittedPart, ...]
    tuning: Tuning | None = None
