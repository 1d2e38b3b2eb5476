"""The small trained Llama that ships with the package, and its calibration and evaluation texts.

How it was made, on what text and how good it is: `benchmarks/reference_model/README.md`.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def path() -> Path:
    """The model's checkpoint folder."""
    return _FOLDER / "model"


def calibration_text() -> Path:
    """Text to plan on: never trained on, disjoint from the evaluation text."""
    return _FOLDER / "calibration.txt"


def evaluation_text() -> Path:
    """Text to measure perplexity on: never trained on, never planned on."""
    return _FOLDER / "evaluation.txt"
