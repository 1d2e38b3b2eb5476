"""The recipe of a run: everything that decides its result, validated strictly, saved with the run.

A recipe is YAML. What it leaves out has the default documented here, and the effective recipe, defaults
included, is written into the run's folder as `recipe.yaml`: passing that file again repeats the run.

    plan:
      num_layers: 4
    bench:
      prompt_lengths: [32, 128, 512]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from hlap_export.errors import RecipeError
from hlap_export.strict_yaml import Section, parse_yaml

Flavour = Literal["portable", "ort", "trt"]
DType = Literal["float32", "float16", "bfloat16", "int8", "int4"]
BlockSize = Literal[16, 32, 64, 128, 256]
EngineName = Literal["onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
Method = Literal["harp", "fixed"]

Count = Annotated[int, Field(ge=1)]
Lengths = Annotated[tuple[Count, ...], Field(min_length=1)]


class PlanSection(Section):
    """Which layers lose attention, and how that is decided."""

    file: Path | None = None
    """A plan to use as it is (the JSON that `hlap-export plan` writes); nothing is searched then."""
    method: Method = "harp"
    """`harp` searches each layer's alpha on perplexity; `fixed` takes `alphas` as given."""
    num_layers: Count | None = None
    """How many of the last layers lose attention (harp); left out, a quarter of the model's layers."""
    alphas: dict[int, float] | None = None
    """Layer (0 at the embedding) to alpha in [0, 1], where 0 removes the block (fixed)."""
    text: Path | None = None
    """Calibration text; left out, the one that ships with the reference model."""
    windows: Count = 64
    """Calibration windows, spread evenly over the text."""
    window_length: Count = 256
    """Tokens in one calibration window."""

    @model_validator(mode="after")
    def _one_way_to_decide(self) -> PlanSection:
        if self.method == "fixed" and self.file is None and not self.alphas:
            raise ValueError("alphas, such as {8: 0.2, 9: 0.7}, or a plan file for method fixed")
        if self.alphas is not None and (self.method != "fixed" or self.file is not None):
            raise ValueError("no alphas unless the method is fixed and no plan file is given")
        return self


class ExportSection(Section):
    """How the ONNX graph looks."""

    flavour: Flavour = "ort"
    """`portable`: plain ONNX operators, concatenated KV cache. `ort`: ONNX Runtime's own, KV in place."""
    dtype: DType = "float32"
    """Type of the weights and of the arithmetic in the graph; `int8` and `int4` (flavour ort) are of weights alone."""
    block_size: BlockSize | None = None
    """For `int8` and `int4`, how many weights share a scale; left out, 32."""


class VerifySection(Section):
    """How much is compared with PyTorch, and how much text the engines' perplexity is measured on."""

    text: Path | None = None
    """Evaluation text, never used for the plan; left out, the one that ships with the reference model."""
    windows: Count = 32
    """Evaluation windows, spread evenly over the text."""
    window_length: Count = 256
    """Tokens in one evaluation window."""
    decode_steps: Count = 128
    """Tokens that are decoded one by one and compared; fewer where the model has no positions for them."""
    context_length: Count | None = None
    """Tokens of the longest sequence that is compared; left out, what the model and the engine hold, 2048 at most."""


class BenchSection(Section):
    """What is timed, the pruned engine against the dense one."""

    prompt_lengths: Lengths = (64, 256, 1024)
    """Prompt tokens of a prefill."""
    context_lengths: Lengths = (64, 512, 2048)
    """Tokens already in the cache when one more is decoded."""
    batches: Lengths = (1,)
    """Rows that run together; every length is timed with each."""
    repeats: Count = 20
    """Timed pairs (dense, pruned) for each batch and length."""
    rounds: Count = 5
    """How often both engines are loaded anew: each round times everything, so that its luck shows in the intervals."""


class Recipe(Section):
    """One run, from a model to a report."""

    model: str | None = None
    """Directory or hub id; left out, the reference model that ships with the package."""
    plan: PlanSection = PlanSection()
    export: ExportSection = ExportSection()
    engine: EngineName = "onnxruntime"
    """What the ONNX graph is built into."""
    verify: VerifySection = VerifySection()
    bench: BenchSection = BenchSection()


def load_recipe(path: Path) -> Recipe:
    """Read a YAML recipe; relative paths in it count from the recipe's own folder.

    Raises:
        RecipeError: no such file, not YAML, an unknown key (the nearest known one is named), or a bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            where=str(path),
            expected="a YAML recipe",
            found=str(error.strerror if isinstance(error, OSError) else error),
            fix="pass an existing file to --recipe",
        ) from error
    recipe = parse_recipe(text, where=str(path))
    return _with_paths_from(recipe, path.parent)


def parse_recipe(text: str, *, where: str = "recipe") -> Recipe:
    """Parse and validate YAML text; `where` names it in errors."""
    return parse_yaml(text, Recipe, where=where, example="sections such as plan: and bench:")


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def effective_recipe(recipe: Recipe | Path | None, model: str | Path | None) -> Recipe:
    """What a run is asked for: the recipe, or the file that holds it, with MODEL put in where one is given."""
    asked = Recipe() if recipe is None else recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    if model is None:
        return asked
    # A folder is saved absolute, so that the recipe in the run's folder means the same from anywhere.
    name = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    return asked.model_copy(update={"model": name})


def parse_alphas(pairs: Sequence[str]) -> dict[int, float] | None:
    """`["8=0.2", "9=0.7"]` as `{8: 0.2, 9: 0.7}`; None for no pairs.

    Raises:
        RecipeError: not LAYER=ALPHA, or a layer twice.
    """
    alphas: dict[int, float] = {}
    for pair in pairs:
        layer, _, alpha = pair.partition("=")
        try:
            index, value = int(layer), float(alpha)
        except ValueError as error:
            raise RecipeError(
                where=f"--alpha {pair}",
                expected="LAYER=ALPHA, two numbers",
                found=repr(pair),
                fix="write it like --alpha 8=0.2; layers count from 0 at the embedding",
            ) from error
        if index in alphas:
            raise RecipeError(
                where=f"--alpha {pair}",
                expected="one alpha for each layer",
                found=f"layer {index} twice",
                fix="leave one of them out",
            )
        alphas[index] = value
    return alphas or None


def _with_paths_from(recipe: Recipe, folder: Path) -> Recipe:
    def resolved(path: Path | None) -> Path | None:
        return None if path is None else (folder / path).resolve()

    plan = recipe.plan.model_copy(update={"file": resolved(recipe.plan.file), "text": resolved(recipe.plan.text)})
    verify = recipe.verify.model_copy(update={"text": resolved(recipe.verify.text)})
    model = recipe.model
    if model is not None and (folder / model).is_dir():
        model = str((folder / model).resolve())
    return recipe.model_copy(update={"plan": plan, "verify": verify, "model": model})
