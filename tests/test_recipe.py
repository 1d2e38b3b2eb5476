from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml

from hlap_export.bench import BenchOptions, bench
from hlap_export.errors import RecipeError
from hlap_export.export import export
from hlap_export.plan import CalibrationOptions
from hlap_export.recipe import Recipe, dump_recipe, effective_recipe, load_recipe, parse_recipe
from hlap_export.verify import VerifyOptions


@pytest.mark.parametrize(
    ("text", "place", "advice"),
    [
        ("plan: {num_layer: 3}", "plan.num_layer", "did you mean plan.num_layers?"),
        ("bench: {context_length: [8]}", "bench.context_length", "did you mean bench.context_lengths?"),
        ("prompt_length: [8]", "prompt_length", "did you mean bench.prompt_lengths?"),
        ("verfy: {windows: 8}", "verfy", "did you mean verify?"),
        ("zzqq: 1", "zzqq", "remove the key"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_its_path_and_the_nearest_known_key(
    text: str, place: str, advice: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, where="r.yaml")
    assert caught.value.where == f"r.yaml: {place}"
    assert advice in caught.value.fix


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("plan: {num_layers: three}", "plan.num_layers"),
        ("plan: {num_layers: 0}", "plan.num_layers"),
        ("plan: {num_layers: true}", "plan.num_layers"),
        ("plan: {method: harpp}", "plan.method"),
        ("plan: {method: fixed, alphas: {8: .nan}}", "plan.alphas.8"),
        ("plan: {method: fixed, alphas: {top: 0.2}}", "plan.alphas.top"),
        ("bench: {prompt_lengths: [8, -1]}", "bench.prompt_lengths.1"),
        ("bench: {prompt_lengths: []}", "bench.prompt_lengths"),
        ("engine: openvino", "engine"),
        ("plan: 3", "plan"),
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_an_error_that_names_its_path(text: str, place: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, where="r.yaml")
    assert caught.value.where == f"r.yaml: {place}"


@pytest.mark.parametrize("text", ["- plan", "plan: [", "plan: {windows: 8, windows: 9}", "just words"])
def test_what_is_not_a_mapping_with_unique_keys_is_refused(text: str) -> None:
    with pytest.raises(RecipeError):
        parse_recipe(text)


@pytest.mark.parametrize("text", ["plan: {method: fixed}", "plan: {alphas: {8: 0.2}}"])
def test_alphas_and_method_fixed_need_each_other(text: str) -> None:
    with pytest.raises(RecipeError, match="alphas"):
        parse_recipe(text)


def test_an_empty_recipe_is_the_defaults() -> None:
    assert parse_recipe("") == parse_recipe("# nothing\n") == Recipe()


def test_the_saved_recipe_names_every_default_and_reads_back_as_the_same() -> None:
    recipe = parse_recipe("plan: {method: fixed, alphas: {8: 0.2, 9: 0}}\nbench: {repeats: 7}")
    saved = dump_recipe(recipe)
    assert parse_recipe(saved) == recipe
    assert set(yaml.safe_load(saved)["verify"]) == {
        "text",
        "windows",
        "window_length",
        "decode_steps",
        "context_length",
    }


def test_relative_paths_count_from_the_recipes_own_folder(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "recipe.yaml"
    path.write_text("model: model\nplan: {text: a.txt, file: p.json}\nverify: {text: b.txt}")
    recipe = load_recipe(path)
    assert recipe.model == str(tmp_path / "model")
    assert (recipe.plan.text, recipe.plan.file) == (tmp_path / "a.txt", tmp_path / "p.json")
    assert recipe.verify.text == tmp_path / "b.txt"


def test_a_hub_id_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: org/some-model")
    assert load_recipe(path).model == "org/some-model"


def test_a_recipe_file_that_is_not_there_is_a_recipe_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_a_model_on_the_command_line_wins_over_the_recipes(tmp_path: Path) -> None:
    assert effective_recipe(Recipe(model="org/one"), "org/two").model == "org/two"
    assert effective_recipe(Recipe(model="org/one"), None).model == "org/one"
    assert effective_recipe(None, tmp_path).model == str(tmp_path)


def test_the_recipes_defaults_are_those_of_the_functions_it_calls() -> None:
    recipe = Recipe()
    calibration, verification, timing = CalibrationOptions(), VerifyOptions(), BenchOptions()
    assert (recipe.plan.windows, recipe.plan.window_length) == (calibration.windows, calibration.window_length)
    assert (recipe.verify.windows, recipe.verify.window_length) == (verification.windows, verification.window_length)
    assert recipe.bench.repeats == timing.repeats
    defaults = {name: parameter.default for name, parameter in inspect.signature(bench).parameters.items()}
    assert recipe.bench.prompt_lengths == defaults["prompt_lengths"]
    assert recipe.bench.context_lengths == defaults["context_lengths"]
    exported = inspect.signature(export).parameters
    assert recipe.export.dtype == exported["dtype"].default


def test_a_run_takes_its_engines_fastest_flavour_and_an_export_for_anyone_the_portable_one() -> None:
    assert (Recipe().engine, Recipe().export.flavour) == ("onnxruntime", "ort")
    assert inspect.signature(export).parameters["flavour"].default == "portable"


def test_a_gpu_computes_in_half_precision_unless_something_else_is_asked_for() -> None:
    assert parse_recipe("engine: onnxruntime-cuda").export == Recipe().export.model_copy(update={"dtype": "float16"})
    assert parse_recipe("engine: onnxruntime-cuda\nexport: {dtype: bfloat16}").export.dtype == "bfloat16"
    assert effective_recipe(None, None, "onnxruntime-cuda").export.dtype == "float16"


@pytest.mark.parametrize("export", ["dtype: float32", "dtype: int4", "flavour: portable", "flavour: trt"])
def test_what_has_no_attention_on_the_gpu_is_refused_before_a_run(export: str) -> None:
    with pytest.raises(RecipeError, match=r"or no (dtype|flavour)"):
        parse_recipe(f"engine: onnxruntime-cuda\nexport: {{{export}}}")
    with pytest.raises(RecipeError, match=export.replace(": ", " ")):
        effective_recipe(parse_recipe(f"export: {{{export}}}"), None, "onnxruntime-cuda")


def test_a_bundle_of_flavour_trt_is_refused_before_a_run() -> None:
    with pytest.raises(RecipeError, match="flavour ort or portable, which ort-genai runs"):
        parse_recipe("bundle: ort-genai\nexport: {flavour: trt, dtype: float16}")
