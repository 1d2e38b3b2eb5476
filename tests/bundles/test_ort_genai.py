"""Bundles run by the real onnxruntime-genai, against transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai
import pytest

from hlap_export import inspect
from hlap_export.artifacts import read_manifest
from hlap_export.bundles import bundle
from hlap_export.bundles.genai_trial import try_out
from hlap_export.bundles.ort_genai import _has_windows
from hlap_export.checkpoint import read_layout
from hlap_export.engines import open_session
from hlap_export.errors import BundleError
from hlap_export.families import FAMILIES
from hlap_export.generate.sampling import Sampling, chooser
from hlap_export.generate.tokens import token_stream
from tests.bundles.bundled import EOS, TinyBundles, add_tokenizer, genai_tokens, transformers_tokens, up_to_stop
from tests.tiny import VOCAB_SIZE
from tests.tiny_engines import TinyEngines, altered

PROMPT = np.random.default_rng(3).integers(1, VOCAB_SIZE, 9).tolist()
STOPPING_PROMPT = np.random.default_rng(0).integers(1, VOCAB_SIZE, 9).tolist()
SHORT_PROMPT = np.random.default_rng(1).integers(1, VOCAB_SIZE, 5).tolist()


def set_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# "mixed" has fewer heads in layers 0 and 2, a value-only layer between them, and no attention in layer 3.
WITH_WINDOWS = ("gemma2", "mistral")
CASES = [
    *((family, "mixed", "ort") for family in sorted(FAMILIES)),
    *((family, "mixed", "portable") for family in sorted(FAMILIES) if family not in WITH_WINDOWS),
    ("llama", "dense", "ort"),
    ("llama", "holes", "ort"),
]


@pytest.mark.parametrize(("family", "plan", "flavour"), CASES)
def test_greedy_tokens_are_those_of_transformers(
    tiny_bundles: TinyBundles, family: str, plan: str, flavour: str
) -> None:
    made = tiny_bundles.get(family, plan, "float32", flavour)
    (found,) = genai_tokens(made.folder, [PROMPT])
    assert found == transformers_tokens(made.checkpoint, PROMPT)
    assert len(found) == 40 - len(PROMPT)


@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_a_quantised_engine_writes_what_it_writes_by_itself(tiny_bundles: TinyBundles, dtype: str) -> None:
    made = tiny_bundles.get("llama", "mixed", dtype, "ort")
    (found,) = genai_tokens(made.folder, [PROMPT])
    with open_session(made.engine, threads=1) as session:
        tokens = token_stream(session, np.array(PROMPT), chooser(Sampling()), max_new_tokens=31, stop_ids={EOS})
        assert found == up_to_stop(list(tokens))
    assert inspect(made.folder).facts["kv_bytes_per_token"] == 2 * (2 + 1) * 16 * 4


def test_buffers_are_shared_where_the_cache_is_written_in_place(tiny_bundles: TinyBundles, tmp_path: Path) -> None:
    folders = [tiny_bundles.get("llama", "mixed", "float32", flavour).folder for flavour in ("portable", "ort")]
    configs = [json.loads((folder / "genai_config.json").read_text()) for folder in folders]
    assert [config["search"]["past_present_share_buffer"] for config in configs] == [False, True]
    apart = shutil.copytree(folders[1], tmp_path / "apart")
    set_json(apart / "genai_config.json", search={**configs[1]["search"], "past_present_share_buffer": False})
    assert genai_tokens(apart, [PROMPT]) == genai_tokens(folders[1], [PROMPT])


def test_the_model_s_stop_token_ends_the_text(tiny_bundles: TinyBundles) -> None:
    made = tiny_bundles.get("llama", "mixed")
    (found,) = genai_tokens(made.folder, [STOPPING_PROMPT])
    assert found == transformers_tokens(made.checkpoint, STOPPING_PROMPT)
    assert len(found) < 10


@pytest.mark.parametrize(("family", "flavour"), [("llama", "portable"), ("mistral", "ort")])
def test_a_prompt_in_two_pieces_is_one_prompt(family: str, flavour: str, tiny_bundles: TinyBundles) -> None:
    folder = tiny_bundles.get(family, "mixed", "float32", flavour).folder
    assert genai_tokens(folder, [PROMPT[:6]], [PROMPT[6:]]) == genai_tokens(folder, [PROMPT])


@pytest.mark.parametrize(("family", "flavour"), [("llama", "portable"), ("mistral", "ort")])
def test_prompts_of_unequal_length_in_a_batch_are_as_alone(
    tiny_bundles: TinyBundles, family: str, flavour: str
) -> None:
    made = tiny_bundles.get(family, "mixed", "float32", flavour)
    padded = [*SHORT_PROMPT, *[0] * (len(PROMPT) - len(SHORT_PROMPT))]
    long, short = genai_tokens(made.folder, [PROMPT, padded])
    (alone,) = genai_tokens(made.folder, [SHORT_PROMPT])
    assert long == transformers_tokens(made.checkpoint, PROMPT)
    assert short == alone[: len(short)] == transformers_tokens(made.checkpoint, SHORT_PROMPT)[: len(short)]
    assert len(short) > 8


def test_a_half_precision_engine_runs_too(tiny_bundles: TinyBundles) -> None:
    made = tiny_bundles.get("llama", "dense", "float16")
    assert len(genai_tokens(made.folder, [PROMPT])[0]) > 8


def test_text_goes_in_and_comes_out(tiny_bundles: TinyBundles) -> None:
    model = onnxruntime_genai.Model(str(tiny_bundles.get("llama", "mixed").folder))
    tokenizer = onnxruntime_genai.Tokenizer(model)
    assert "import" in tokenizer.decode(tokenizer.encode("import json"))


def test_the_config_takes_sampling_and_special_tokens_from_the_model(tiny_bundles: TinyBundles, tmp_path: Path) -> None:
    stated = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [95, 94], "pad_token_id": 3}
    engine = altered(
        tiny_bundles.get("llama", "mixed").engine,
        tmp_path / "engine",
        lambda copy: (copy / "generation_config.json").write_text(json.dumps(stated)),
    )
    bundle(engine, tmp_path / "bundle")
    config = json.loads((tmp_path / "bundle/genai_config.json").read_text())
    ids = {name: config["model"][name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert ids == {"bos_token_id": 0, "eos_token_id": [95, 94], "pad_token_id": 3}
    assert config["search"].items() >= {"do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.9}.items()
    params = onnxruntime_genai.GeneratorParams(onnxruntime_genai.Model(str(tmp_path / "bundle")))
    read = params.get_search_options()
    assert (read["do_sample"], read["top_k"]) == (True, 50)
    assert read["temperature"] == pytest.approx(0.6)


def test_the_manifest_says_what_the_bundle_was_tried_with(
    tiny_bundles: TinyBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_bundles.get("llama", "mixed")
    assert read_manifest(made.folder).facts["tried_with"].startswith("onnxruntime-genai 0.")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    bundle(made.engine, tmp_path / "untried")
    assert read_manifest(tmp_path / "untried").facts["tried_with"] == "nothing: onnxruntime-genai isn't installed"


def test_a_bundle_for_a_gpu_is_not_tried_where_there_is_none(
    tiny_bundles: TinyBundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_genai, "is_cuda_available", lambda: False)
    bundle(on_provider(tiny_bundles, tmp_path, "CUDAExecutionProvider"), tmp_path / "bundle")
    assert "can't use a GPU here" in read_manifest(tmp_path / "bundle").facts["tried_with"]
    config = json.loads((tmp_path / "bundle/genai_config.json").read_text())
    options = config["model"]["decoder"]["session_options"]
    assert options["provider_options"] == [{"cuda": {}}]
    assert options["graph_optimization_level"] == "ORT_ENABLE_EXTENDED"


def test_a_graph_is_optimised_where_the_engine_itself_would(tiny_bundles: TinyBundles, tmp_path: Path) -> None:
    made = tiny_bundles.get("llama", "mixed").folder
    decoder = json.loads((made / "genai_config.json").read_text())["model"]["decoder"]
    assert decoder["session_options"]["graph_optimization_level"] == "ORT_DISABLE_ALL"
    # The level that a GPU's engine is given is one that onnxruntime-genai knows.
    optimised = shutil.copytree(made, tmp_path / "optimised")
    model = json.loads((made / "genai_config.json").read_text())["model"]
    model["decoder"]["session_options"]["graph_optimization_level"] = "ORT_ENABLE_EXTENDED"
    set_json(optimised / "genai_config.json", model=model)
    assert genai_tokens(optimised, [PROMPT]) == genai_tokens(made, [PROMPT])


def on_provider(tiny_bundles: TinyBundles, tmp_path: Path, provider: str) -> Path:
    """An engine whose manifest says that another provider runs it."""
    engine = tmp_path / "engine"
    shutil.copytree(tiny_bundles.get("llama", "mixed").engine, engine)
    manifest = read_manifest(engine)
    elsewhere = manifest.model_copy(update={"facts": manifest.facts | {"provider": provider}})
    (engine / "manifest.json").write_text(elsewhere.to_text())
    return engine


@pytest.mark.parametrize("family", WITH_WINDOWS)
def test_windows_that_count_padding_are_refused_with_the_flavour_that_counts_tokens(
    family: str, tiny_bundles: TinyBundles
) -> None:
    with pytest.raises(BundleError, match=r"sliding windows of 7 places.*--flavour ort"):
        tiny_bundles.get(family, "mixed", "float32", "portable")


@pytest.mark.parametrize(
    ("windowed", "window", "found"),
    [((0, 3), 7, True), ((1, 3), 7, False), ((0, 3), 128, False)],
    ids=["a layer with attention", "only layers without", "as long as the longest context"],
)
def test_a_window_counts_where_attention_is_and_sees_less_than_everything(
    windowed: tuple[int, ...], window: int, found: bool, tiny_bundles: TinyBundles
) -> None:
    layout = read_layout(tiny_bundles.get("llama", "mixed").checkpoint)  # attention in layers 0 and 2 alone
    kinds = tuple("sliding_attention" if layer in windowed else "full_attention" for layer in range(4))
    assert _has_windows(replace(layout, sliding_window=window, layer_types=kinds)) is found


def test_an_engine_of_flavour_trt_is_refused(
    tiny_bundles: TinyBundles, tiny_engines: TinyEngines, tmp_path: Path
) -> None:
    engine = altered(tiny_engines.get(flavour="trt").folder, tmp_path / "engine", add_tokenizer)
    with pytest.raises(BundleError, match=r"found flavour trt.*--flavour ort"):
        bundle(engine, tmp_path / "bundle")


REFUSED = {
    "a tokenizer class that genai doesn't know": (
        lambda engine: set_json(engine / "tokenizer_config.json", tokenizer_class="ElsewhereTokenizer"),
        "Unsupported tokenizer class",
    ),
    "a tokenizer in another form": (
        lambda engine: (engine / "tokenizer.json").rename(engine / "tokenizer.model"),
        "no tokenizer.json",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_genai_can_not_hold_is_refused_with_its_reason(
    tiny_bundles: TinyBundles, tmp_path: Path, case: str
) -> None:
    change, reason = REFUSED[case]
    engine = altered(tiny_bundles.get("llama", "mixed").engine, tmp_path / "engine", change)
    with pytest.raises(BundleError, match=reason):
        bundle(engine, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_an_engine_on_another_provider_is_refused(tiny_bundles: TinyBundles, tmp_path: Path) -> None:
    engine = on_provider(tiny_bundles, tmp_path, "QNNExecutionProvider")
    with pytest.raises(BundleError, match="QNNExecutionProvider"):
        bundle(engine, tmp_path / "bundle")


def test_other_logits_than_the_engine_s_are_refused(tiny_bundles: TinyBundles) -> None:
    with pytest.raises(BundleError, match="logits"):
        try_out(tiny_bundles.get("llama", "mixed").folder, tiny_bundles.get("llama", "holes").engine)


def test_other_tokens_than_the_tokenizer_s_are_refused(tiny_bundles: TinyBundles, tmp_path: Path) -> None:
    """A pre-tokenizer that genai reads otherwise: `-1` for what the vocabulary lacks, where transformers drops it."""
    made = tiny_bundles.get("llama", "mixed")
    shutil.copytree(made.folder, tmp_path / "bundle")
    tokenizer = json.loads((tmp_path / "bundle/tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "bundle/tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(BundleError, match="the tokens of transformers"):
        try_out(tmp_path / "bundle", made.engine)
