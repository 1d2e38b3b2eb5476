"""Fitted layers are what least squares on the stock model's own activations gives, in the order of the layers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hlap_export.checkpoint import read_layout
from hlap_export.checkpoint.decoder import open_decoder
from hlap_export.checkpoint.layout import ModelLayout
from hlap_export.errors import PlanError
from hlap_export.families import FAMILIES
from hlap_export.fold.attention import sum_over_groups
from hlap_export.on_progress import Steps, ignore_progress
from hlap_export.plan import calibration
from hlap_export.plan.calibration import Search, Windows, calibrate
from hlap_export.plan.fitted_plan import save_fitted
from hlap_export.plan.fitting import FitOptions, fit_layers, unexplained
from hlap_export.plan.journal import Journal
from hlap_export.plan.pruning_plan import (
    Keep,
    KeepHeads,
    Linear,
    ModelIdentity,
    PruningPlan,
    RefitAttention,
    RefitMlp,
    TextWindows,
    ValueOnly,
    linear_of,
)
from hlap_export.plan.states import StateFiles
from hlap_export.prune import prune
from tests.masked_dense import masked, masked_logits
from tests.memory import leave_memory
from tests.tiny import VOCAB_SIZE, tiny_model

# The same activations in float32, computed by other code: 1e-6 of their size, times the condition of the regression.
RELATIVE_WEIGHT_ERROR = 1e-3
RELATIVE_PERPLEXITY_ERROR = 1e-5
OPTIONS = FitOptions(ridges=(1e-2,))
NUM_WINDOWS, WINDOW_LENGTH = 8, 25


def windows(length: int = WINDOW_LENGTH, count: int = NUM_WINDOWS) -> Windows:
    ids = torch.randint(1, VOCAB_SIZE, (count, length), generator=torch.Generator().manual_seed(2))
    text = TextWindows(name="random ids", sha256="0" * 64, num_windows=count, window_length=length)
    return Windows(ids=ids, text=text)


def saved(folder: Path, model_type: str, **overrides: Any) -> tuple[Path, Any]:
    """A tiny checkpoint, and the model in eager attention."""
    model = tiny_model(model_type, **overrides)
    model.save_pretrained(folder / "dense")
    model.set_attn_implementation("eager")
    return folder / "dense", model


def opened(checkpoint: Path, given: Windows, work: Path) -> Search:
    """A search after its dense pass."""
    search = Search(
        decoder=open_decoder(checkpoint, batch=given.batch),
        windows=given,
        states=StateFiles(work, length=given.batch.length, hidden_size=48),
        journal=Journal(work, {}),
        steps=Steps(0, ignore_progress),
    )
    calibrate(search, first_layer=1)
    return search


def plan_of(layout: ModelLayout, *attention: Any, **rest: Any) -> PruningPlan:
    return PruningPlan(method="test", model=ModelIdentity.of(layout), attention=attention, **rest)


@contextmanager
def watched(model: Any, index: int) -> Iterator[dict[str, torch.Tensor]]:
    """What goes through one layer of a stock model: inputs of its parts and what leaves them, [tokens, size]."""
    seen: dict[str, torch.Tensor] = {}
    layer = model.model.layers[index]
    gemma = hasattr(layer, "pre_feedforward_layernorm")
    mlp_norm = layer.pre_feedforward_layernorm if gemma else layer.post_attention_layernorm

    def keep(name: str, place: Any) -> Any:
        def hook(module: Any, inputs: Any, *output: Any) -> None:
            value = (output[0] if output else inputs[0]) if place == "after" else inputs[0]
            seen[name] = (value[0] if isinstance(value, tuple) else value).detach().flatten(0, 1).double()

        return hook

    hooks = [
        layer.register_forward_pre_hook(keep("entering", "before")),
        layer.register_forward_hook(keep("leaving", "after")),
        layer.input_layernorm.register_forward_hook(keep("normed", "after")),
        mlp_norm.register_forward_pre_hook(keep("between", "before")),
        (layer.post_attention_layernorm if gemma else layer.self_attn.o_proj).register_forward_pre_hook(
            keep("attention", "before")
        ),
        layer.mlp.down_proj.register_forward_pre_hook(keep("mlp", "before")),
    ]
    if gemma:
        hooks.append(layer.post_feedforward_layernorm.register_forward_pre_hook(keep("mlp", "before")))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def activations(model: Any, plan: PruningPlan, fitted: Any, index: int) -> dict[str, np.ndarray]:
    with watched(model, index) as seen:
        masked_logits(model, plan, windows().inputs, fitted=fitted)
    return {name: value.numpy() for name, value in seen.items()}


def least_squares(x: np.ndarray, y: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression with an intercept, on the tokens themselves."""
    centred = x - x.mean(0)
    rows = np.sqrt(ridge * (centred**2).mean() * len(x)) * np.eye(x.shape[1])
    right = np.vstack([y - y.mean(0), np.zeros((len(rows), y.shape[1]))])
    solution, *_ = np.linalg.lstsq(np.vstack([centred, rows]), right)
    return solution.T, y.mean(0) - solution.T @ x.mean(0)


def assert_close(found: torch.Tensor, expected: np.ndarray) -> None:
    assert np.abs(found.numpy() - expected).max() <= RELATIVE_WEIGHT_ERROR * np.abs(expected).max()


@pytest.mark.parametrize("follow_residual", [True, False])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_map_is_least_squares_on_the_pruned_models_inputs(
    model_type: str, follow_residual: bool, tmp_path: Path
) -> None:
    checkpoint, model = saved(tmp_path, model_type)
    layout = read_layout(checkpoint)
    attention = (Keep(), linear_of("full", layout), KeepHeads(query_heads=(1, 4)), linear_of("output", layout))
    plan, dense = plan_of(layout, *attention), plan_of(layout, *[Keep()] * 4)
    options = FitOptions(ridges=(1e-2,), follow_residual=follow_residual)
    found = fit_layers(opened(checkpoint, windows(), tmp_path / "work"), layout, plan, options)
    for index in (1, 3):
        before, so_far = (
            activations(model, dense, {}, index),
            {name: weight for name, weight in found.tensors.items() if int(name.split(".")[1]) < index},
        )
        pruned = activations(model, plan, so_far, index)
        x, reached = pruned["normed"], pruned["entering"] if follow_residual else before["entering"]
        if index == 3:
            x = x @ model.model.layers[3].self_attn.v_proj.weight.detach().double().numpy().T
        weight, bias = least_squares(x, before["between"] - reached, ridge=1e-2)
        assert_close(found.tensors[f"fitted.{index}.o_proj.weight"], weight)
        assert_close(found.tensors[f"fitted.{index}.o_proj.bias"], bias)
    assert [(part.layer, part.part, part.ridge) for part in found.parts] == [
        (1, "attention", 1e-2),
        (3, "attention", 1e-2),
    ]


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_a_refitted_part_is_least_squares_towards_the_dense_models_layer(model_type: str, tmp_path: Path) -> None:
    checkpoint, model = saved(tmp_path, model_type)
    layout = read_layout(checkpoint)
    attention = (Keep(), ValueOnly(alpha=0.4), RefitAttention(), Keep())
    plan = plan_of(layout, *attention, mlp={1: RefitMlp(), 2: RefitMlp()})
    found = fit_layers(opened(checkpoint, windows(), tmp_path / "work"), layout, plan, OPTIONS).tensors
    assert set(found) == {"fitted.1.mlp.weight", "fitted.2.attention.weight", "fitted.2.mlp.weight"}
    for name, last, start, end in (
        ("fitted.1.mlp.weight", "mlp.down_proj", "between", "leaving"),
        ("fitted.2.attention.weight", "self_attn.o_proj", "entering", "between"),
        ("fitted.2.mlp.weight", "mlp.down_proj", "between", "leaving"),
    ):
        _, index, part, _ = name.split(".")
        # In the order of the layers, an attention before its MLP.
        so_far = {other: weight for other, weight in found.items() if other < name}
        pruned = activations(model, plan, so_far, int(index))
        dense = activations(model, plan_of(layout, *[Keep()] * 4), {}, int(index))
        x, target = pruned[part], dense[end] - pruned[start]
        if model_type == "gemma2":
            z = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.config.rms_norm_eps)
            assert_close(found[name], (z * target).sum(0) / (z**2).sum(0) - 1)
        else:
            prior = model.model.layers[int(index)].get_submodule(last).weight.detach().double().numpy()
            rows = np.sqrt(1e-2 * (x**2).mean() * len(x)) * np.eye(x.shape[1])
            right = np.vstack([target - x @ prior.T, np.zeros((len(rows), 48))])
            solution, *_ = np.linalg.lstsq(np.vstack([x, rows]), right)
            assert_close(found[name], solution.T + prior)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [("llama", {}), ("llama", {"attention_bias": True, "mlp_bias": True}), ("qwen2", {}), ("gemma2", {})],
)
def test_the_perplexity_is_that_of_the_pruned_checkpoint(
    model_type: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    from hlap_export.checkpoint import load_model

    checkpoint, model = saved(tmp_path, model_type, **overrides)
    layout, given = read_layout(checkpoint), windows()
    attention = (Keep(), linear_of("low_rank", layout, 7), RefitAttention(), linear_of("output", layout))
    plan = plan_of(layout, *attention, mlp={1: RefitMlp(), 2: RefitMlp()})
    fitting = fit_layers(opened(checkpoint, given, tmp_path / "work"), layout, plan, OPTIONS)
    plan = save_fitted(fitting, plan, tmp_path / "plan.safetensors")
    prune(checkpoint, plan, tmp_path / "pruned", fitted=tmp_path / "plan.safetensors")
    with torch.no_grad(), masked(model, plan, fitting.tensors):
        expected = _perplexity(model, given)
        pruned = _perplexity(load_model(tmp_path / "pruned", dtype=torch.float32), given)
    assert fitting.perplexity == pytest.approx(expected, rel=RELATIVE_PERPLEXITY_ERROR)
    assert pruned == pytest.approx(expected, rel=RELATIVE_PERPLEXITY_ERROR)


def _perplexity(model: Any, given: Windows) -> float:
    logits = model(input_ids=given.inputs, use_cache=False).logits.double()
    return math.exp(torch.nn.functional.cross_entropy(logits.flatten(0, 1), given.targets.flatten()).item())


def test_where_tokens_attend_to_themselves_alone_the_fit_finds_the_fold(tmp_path: Path) -> None:
    """In windows with one input token, attention is linear in it: nothing stays unexplained."""
    checkpoint, model = saved(tmp_path, "llama")
    layout, given = read_layout(checkpoint), windows(length=2, count=400)
    search = opened(checkpoint, given, tmp_path / "work")
    options = FitOptions(ridges=(1e-12,))
    assert max(unexplained(search, layout, (1, 2, 3), "full", options).values()) < 1e-6
    plan = plan_of(layout, Keep(), Keep(), linear_of("output", layout), Keep())
    found = fit_layers(search, layout, plan, options)
    w_o = model.model.layers[2].self_attn.o_proj.weight.detach()
    assert_close(found.tensors["fitted.2.o_proj.weight"], sum_over_groups(w_o, 6, 2).numpy())
    assert found.parts[0].unexplained_ratio < 1e-6


@pytest.mark.parametrize("model_type", ["qwen2", "gemma2"])
def test_streamed_layers_and_small_batches_give_the_same_weights(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, _ = saved(tmp_path, model_type)
    layout = read_layout(checkpoint)
    plan = plan_of(
        layout, Keep(), linear_of("low_rank", layout, 7), Keep(), linear_of("full", layout), mlp={2: RefitMlp()}
    )
    whole = fit_layers(opened(checkpoint, windows(), tmp_path / "whole"), layout, plan, OPTIONS)
    monkeypatch.setattr(calibration, "TOKENS_AT_ONCE", 50)
    leave_memory(monkeypatch, {"cpu": 220_000})
    search = opened(checkpoint, windows(), tmp_path / "streamed")
    assert search.decoder.placement.num_streamed_layers == 4
    streamed = fit_layers(search, layout, plan, OPTIONS)
    assert streamed.perplexity == pytest.approx(whole.perplexity, rel=1e-6)
    for name, weight in whole.tensors.items():
        # A low rank's two factors are unique but for the sign of each direction.
        torch.testing.assert_close(streamed.tensors[name].abs(), weight.abs(), rtol=1e-3, atol=1e-3)


def test_too_few_windows_and_nothing_to_change_are_refused(tmp_path: Path) -> None:
    checkpoint, _ = saved(tmp_path, "llama")
    layout, search = read_layout(checkpoint), opened(checkpoint, windows(count=3), tmp_path / "work")
    with pytest.raises(PlanError, match="at least 4"):
        fit_layers(search, layout, plan_of(layout, Keep(), Keep(), Keep(), Linear(form="full", rank=48)))
    with pytest.raises(PlanError, match="changes something"):
        fit_layers(search, layout, plan_of(layout, *[Keep()] * 4))


def test_fitted_weights_are_what_the_checkpoint_will_store_and_wait_on_disk(tmp_path: Path) -> None:
    checkpoint, model = saved(tmp_path, "llama")
    layout, search = read_layout(checkpoint), opened(checkpoint, windows(), tmp_path / "work")
    plan = plan_of(layout, Keep(), linear_of("low_rank", layout, 7), RefitAttention(), linear_of("full", layout))
    options = FitOptions(ridges=(1e-2,), dtype="bfloat16")
    fitting = fit_layers(search, layout, plan, options)
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in fitting.tensors.values())
    with torch.no_grad(), masked(model, plan, fitting.tensors):
        assert fitting.perplexity == pytest.approx(_perplexity(model, windows()), rel=RELATIVE_PERPLEXITY_ERROR)
    assert fitting.tensors["fitted.3.o_proj.weight"] is not fitting.tensors["fitted.3.o_proj.weight"]
    fit_layers(search, layout, plan_of(layout, Keep(), Keep(), Keep(), linear_of("full", layout)), options)
    with pytest.raises(FileNotFoundError):  # gone, rather than another plan's
        fitting.tensors["fitted.3.o_proj.weight"]


def test_the_side_file_is_safetensors_own(tmp_path: Path) -> None:
    from safetensors.torch import save

    checkpoint, _ = saved(tmp_path, "qwen2")
    layout = read_layout(checkpoint)
    plan = plan_of(layout, Keep(), linear_of("low_rank", layout, 7), RefitAttention(), Keep(), mlp={3: RefitMlp()})
    fitting = fit_layers(opened(checkpoint, windows(), tmp_path / "work"), layout, plan, OPTIONS)
    save_fitted(fitting, plan, tmp_path / "plan.safetensors")
    assert (tmp_path / "plan.safetensors").read_bytes() == save(dict(fitting.tensors))
