"""The recipe of a run: everything that decides its result, validated strictly, saved with the run.

A recipe is YAML. What it leaves out has the default documented here, and the effective recipe, defaults
included, is written into the run's folder as `recipe.yaml`: passing that file again repeats the run.

    plan:
      num_layers: 4
    bench:
      prompt_lengths: [32, 128, 512]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from hlap_export.engines.ort_cuda import DTYPES as CUDA_DTYPES
from hlap_export.engines.trt.options import Compatibility, TensorRTOptions
from hlap_export.errors import RecipeError
from hlap_export.plan.layer_plan import LinearForm, Refit
from hlap_export.plan.options import ChooseBy, Measure, MethodName, MethodOptions
from hlap_export.plan.targets import Targets
from hlap_export.strict_yaml import Section, parse_yaml

Flavour = Literal["portable", "ort", "trt"]
DType = Literal["float32", "float16", "bfloat16", "int8", "int4"]
BlockSize = Literal[16, 32, 64, 128, 256]
EngineName = Literal["onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx"]
BundleTarget = Literal["ort-genai"]
TAKE_FLAVOUR_TRT = ("tensorrt", "tensorrt-rtx")
FLAVOUR_OF: Mapping[EngineName, Flavour] = {**dict.fromkeys(TAKE_FLAVOUR_TRT, "trt"), "onnxruntime-cuda": "ort"}
"""The one flavour that an engine for GPUs takes, in half precision unless something else is asked for."""

Ratio = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Lengths = Annotated[tuple[Count, ...], Field(min_length=1)]


class PlanSection(Section):
    """Which layers lose attention, and how that is decided."""

    file: Path | None = None
    """A plan to use as it is (the JSON that `hlap-export plan` writes); nothing is searched then."""
    method: MethodName = "harp"
    """`harp` searches each of the last layers' alpha on perplexity; `suffix-fit` puts fitted linear maps there, and
    `choose-fit` into the layers where that costs least; `attention-drop`, `mlp-drop` and `block-drop` drop what changes
    the stream least, and `group-drop` KV groups that add least to it; `fixed` takes `alphas` as given."""
    num_layers: Count | None = None
    """How many layers lose their attention; left out, as many as the targets ask for, or else a quarter of them."""
    max_perplexity_increase: Ratio | None = None
    """Prune as much as this allows: 0.03 for 3 % over the dense model, the interval's upper end included."""
    target_latency_ratio: Ratio | None = None
    """Prune until latency, prefill and decode, is at most this share of the dense model's."""
    target_kv_ratio: Ratio | None = None
    """Prune until the KV cache is at most this share of the dense model's."""
    max_weight_bytes: Count | None = None
    """Prune until the weights, as wide as the checkpoint stores them, take no more."""
    measure: bool = False
    """Measure the latency of every step's engine instead of counting it: minutes for each."""
    choose_by: ChooseBy | None = None
    """How `choose-fit` (left out: greedy) and the methods that drop (left out: cosine) choose: `greedy` by the loss
    beside what has gone before; `loss` by that of each part alone; `unexplained` by what a linear map leaves of the
    attention (choose-fit); `cosine` by how little a part turns the stream."""
    form: LinearForm = "low_rank"
    """Shape of a fitted map: `low_rank`, `full` (hidden x hidden), or `output` (the layer's own values, and a fitted
    output projection)."""
    rank: Count | None = None
    """Of a low-rank map; left out, HARP's own cost: KV heads times head_dim."""
    follow_residual: bool = True
    """Whether a fitted map is also to undo the error that the residual stream carries so far."""
    refit: Refit = "attention"
    """What is fitted anew of what stays above the first map, at no cost at inference: the output projections of its
    `attention`, of its `mlp`, `both` or `none`. On the reference model `both` takes a tenth off the gap that is left,
    and twice the time; memory grows with the square of the MLP's width."""
    tune_epochs: Annotated[int, Field(ge=0)] = 0
    """Passes over the calibration windows that tune all fitted weights together towards what the dense model predicts,
    the last weights of every half that stays included. Nothing that runs gets dearer. It halves what HARP's layers
    cost the reference model in 6 passes and half a minute; the whole model's output projections are in memory."""
    alphas: dict[int, float] | None = None
    """Layer (0 at the embedding) to alpha in [0, 1], where 0 removes the block (fixed)."""
    text: Path | None = None
    """Calibration text; left out, the one that ships with the reference model."""
    windows: Count = 64
    """Calibration windows, spread evenly over the text."""
    window_length: Count = 256
    """Tokens in one calibration window."""

    def method_options(self, weights: Path, measure: Measure | None = None) -> MethodOptions:
        """What the methods are asked for; `weights` is the file for what they fit, `measure` times plans' engines."""
        targets = Targets(
            max_perplexity_increase=self.max_perplexity_increase,
            latency_ratio=self.target_latency_ratio,
            kv_ratio=self.target_kv_ratio,
            max_weight_bytes=self.max_weight_bytes,
        )
        return MethodOptions(
            targets=targets,
            choose_by=self.choose_by,
            form=self.form,
            rank=self.rank,
            follow_residual=self.follow_residual,
            refit=self.refit,
            tune_epochs=self.tune_epochs,
            weights=weights,
            measure=measure,
        )

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


class TensorRTSection(Section):
    """What engines of TensorRT and TensorRT-RTX are built for; the others take any size."""

    capacity: Count | None = None
    """Tokens that each row's KV cache holds; left out, the model's positions, 4096 at most."""
    max_batch: Count = 4
    """Most rows that run together."""
    typical_batch: Count = 1
    """Rows that kernels are chosen for."""
    max_prompt: Count | None = None
    """Most tokens of a prompt that run together; longer prompts run in pieces. Left out, 1024."""
    typical_prompt: Count | None = None
    """Tokens of a prompt that kernels are chosen for; left out, 256."""
    max_logits: Count | None = None
    """Most tokens of a row that have logits in one call; left out, 64."""
    two_engines: bool = False
    """Prefill and decode as an engine each; otherwise they are one, which holds the weights once."""
    workspace_bytes: Count | None = None
    """Scratch memory that a kernel may ask for; left out, what the GPU has."""
    optimisation_level: Annotated[int, Field(ge=0, le=5)] = 3
    """0 builds fast, 5 runs fast."""
    tf32: bool = False
    """Whether products of float32 may be rounded to 10 bits of mantissa."""
    strip_weights: bool = False
    """Leave the weights out of the engine: they are read from the ONNX beside it when it is loaded."""
    weight_streaming: bool = False
    """Let weights that don't fit on the GPU be streamed from memory."""
    version_compatible: bool = False
    """Let later versions of TensorRT run the engine."""
    compatibility: Compatibility = "none"
    """Which other GPUs than the building one may run it (tensorrt)."""
    compute_capabilities: tuple[str, ...] = ()
    """GPUs that it is built for, such as SM89 (tensorrt-rtx); none for all that can be."""

    def options(self) -> TensorRTOptions:
        """As the compiler takes them."""
        return TensorRTOptions(**self.model_dump())


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
    tensorrt: TensorRTSection = TensorRTSection()
    verify: VerifySection = VerifySection()
    bench: BenchSection = BenchSection()
    bundle: BundleTarget | None = None
    """The serving stack that gets a folder of its own, once the engine is verified; left out, none."""

    @property
    def tensorrt_options(self) -> TensorRTOptions | None:
        """What the engine is built for; None for engines that take any size."""
        return self.tensorrt.options() if self.engine in TAKE_FLAVOUR_TRT else None

    @model_validator(mode="after")
    def _bundle_suits_the_engine(self) -> Recipe:
        if self.bundle and self.engine != "onnxruntime":
            raise ValueError(f"engine onnxruntime, which {self.bundle} runs, or no bundle")
        if self.bundle and self.export.flavour == "trt":
            raise ValueError(f"flavour ort or portable, which {self.bundle} runs, or no bundle")
        return self

    @model_validator(mode="after")
    def _graph_suits_the_engine(self) -> Recipe:
        if self.engine not in FLAVOUR_OF:
            return self
        flavour = FLAVOUR_OF[self.engine]
        defaults = {"flavour": flavour, "dtype": "float16"}
        left_out = {name: value for name, value in defaults.items() if name not in self.export.model_fields_set}
        export = self.export.model_copy(update=left_out)
        if export.flavour != flavour:
            raise ValueError(f"flavour {flavour}, which {self.engine} takes, or no flavour")
        if self.engine == "onnxruntime-cuda" and export.dtype not in CUDA_DTYPES:
            raise ValueError(f"dtype {' or '.join(CUDA_DTYPES)}, which attention on the GPU takes, or no dtype")
        # Frozen for everybody else.
        object.__setattr__(self, "export", export)
        return self


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


def effective_recipe(
    recipe: Recipe | Path | None,
    model: str | Path | None,
    engine: EngineName | None = None,
    bundle: BundleTarget | None = None,
) -> Recipe:
    """What a run is asked for: the recipe, or the file that holds it, with what the command line says put in."""
    asked = Recipe() if recipe is None else recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    engine, bundle = engine or asked.engine, bundle or asked.bundle
    if (engine, bundle) != (asked.engine, asked.bundle):
        asked = _with(asked, engine, bundle)
    if model is None:
        return asked
    # A folder is saved absolute, so that the recipe in the run's folder means the same from anywhere.
    name = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    return asked.model_copy(update={"model": name})


def _with(recipe: Recipe, engine: EngineName, bundle: BundleTarget | None) -> Recipe:
    """The recipe for another engine, whose defaults may differ, or with a bundle."""
    given = {name: getattr(recipe, name) for name in recipe.model_fields_set}
    try:
        return Recipe.model_validate({**given, "engine": engine, "bundle": bundle})
    except ValidationError as error:
        raise RecipeError(
            where=f"--engine {engine}" + (f" --bundle {bundle}" if bundle else ""),
            expected=str(error.errors()[0]["msg"]).removeprefix("Value error, "),
            found=f"flavour {recipe.export.flavour}, dtype {recipe.export.dtype} and engine {engine}",
            fix="leave flavour and dtype out of the recipe, or take the engine that they are for",
        ) from error


def tensorrt_options(recipe: Recipe, engine: str, given: Mapping[str, int | None]) -> TensorRTOptions | None:
    """What an engine is built for: the recipe's section, and what the command line gives.

    Returns:
        None for an engine that takes any size.

    Raises:
        RecipeError: something is given for such an engine.
    """
    wanted = {name: value for name, value in given.items() if value is not None}
    if engine in TAKE_FLAVOUR_TRT:
        return replace(recipe.tensorrt.options(), **wanted)
    for name, value in wanted.items():
        raise RecipeError(
            where=f"--{name.replace('_', '-')}",
            expected="an engine of TensorRT, which must know its sizes",
            found=f"{value} for {engine}, which takes any size",
            fix="leave it out",
        )
    return None


def parse_percent(text: str | None, *, where: str) -> float | None:
    """`"3%"` and `"0.03"` as 0.03; None for none.

    Raises:
        RecipeError: neither, or 1 and more without the sign, which hardly means 100 %.
    """
    if text is None:
        return None
    number, is_percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if is_percent else 1)
    except ValueError as error:
        raise RecipeError(
            where=where, expected="a percentage", found=repr(text), fix="write it like 3% or 0.03"
        ) from error
    if not is_percent and value >= 1:
        raise RecipeError(
            where=where,
            expected="a percentage, or a share below 1",
            found=repr(text),
            fix=f"write {number.strip()}%, or {value:.0%} if that is meant",
        )
    return value


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
