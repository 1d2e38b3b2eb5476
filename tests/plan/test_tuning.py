"""Tuning follows the gradient of the divergence from the dense model, and what it keeps is no worse than before."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from hlap_export import reference_model
from hlap_export.checkpoint import head as head_module
from hlap_export.checkpoint import load_model, read_layout
from hlap_export.checkpoint.decoder import open_decoder
from hlap_export.errors import PlanError
from hlap_export.families import FAMILIES, Family
from hlap_export.on_progress import Steps, ignore_progress
from hlap_export.plan import CalibrationOptions, plan, tuning
from hlap_export.plan.calibration import Search
from hlap_export.plan.fitted_plan import save_fitted
from hlap_export.plan.fitting import Fitting, fit_layers
from hlap_export.plan.options import MethodName, MethodOptions
from hlap_export.plan.pruning_plan import Keep, PruningPlan, RefitAttention, RefitMlp, SkipMlp, linear_of
from hlap_export.plan.side_file import fitted_shapes
from hlap_export.plan.tuning import tune, with_all_refitted
from hlap_export.prune import prune
from tests.plan.test_fitting import opened, plan_of, saved, windows
from tests.plan.test_searching import held_back_loss

EPOCHS = 2


def fitted(checkpoint: Path, work: Path) -> tuple[Search, PruningPlan, Fitting]:
    """A search, a plan with a linear map in layer 2 of 4, and its fit."""
    search, layout = opened(checkpoint, windows(), work), read_layout(checkpoint)
    planned = plan_of(layout, Keep(), Keep(), linear_of("full", layout), Keep())
    return search, planned, fit_layers(search, layout, planned)


def tuned(search: Search, family: Family, planned: PruningPlan, fitted: Any, epochs: int) -> dict[str, torch.Tensor]:
    return tune(search, family, planned, fitted, epochs, Steps(0, ignore_progress))


def divergence(pruned: Path, dense: Path, ids: torch.Tensor) -> torch.Tensor:
    """KL(dense || pruned) in nats per token, by whole checkpoints as transformers runs them."""
    with torch.no_grad():
        log_q, log_p = (
            load_model(path, dtype=torch.float32)(input_ids=ids).logits.log_softmax(-1) for path in (pruned, dense)
        )
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_the_divergence_and_its_gradient_are_those_of_whole_logits(
    softcap: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_module, "VOCABULARY_AT_ONCE", 50)  # the last block is a short one
    checkpoint, model = saved(
        tmp_path, "gemma2" if softcap else "llama", **({"final_logit_softcapping": softcap} if softcap else {})
    )
    generator = torch.Generator().manual_seed(0)
    h, dense = (5 * torch.randn(2, 7, 48, generator=generator) for _ in range(2))

    def log_probabilities(stream: torch.Tensor) -> torch.Tensor:
        logits = model.lm_head(model.model.norm(stream))
        return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).log_softmax(-1)

    whole = h.clone().requires_grad_()
    expected = functional.kl_div(log_probabilities(whole), log_probabilities(dense), log_target=True, reduction="sum")
    expected.backward()
    decoder = open_decoder(checkpoint, batch=windows().batch)
    total, gradient = decoder.head.divergence(h, dense)
    assert total == pytest.approx(expected.item(), rel=1e-4)
    assert whole.grad is not None and gradient.shape == whole.grad.shape
    assert (gradient - whole.grad).abs().max() <= 1e-5 * whole.grad.abs().max()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_tuned_checkpoint_predicts_more_like_the_dense_one(family: str, tmp_path: Path) -> None:
    dense, _ = saved(tmp_path, family)
    search, planned, fitting = fitted(dense, tmp_path / "work")
    wider = with_all_refitted(planned)
    tensors = tuned(search, FAMILIES[family], wider, fitting.tensors, 4)
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == fitted_shapes(wider, read_layout(dense))
    found: dict[str, torch.Tensor] = {}
    for name, what, weights in (("before", planned, fitting.tensors), ("after", wider, tensors)):
        of_plan = Fitting(tensors=weights, parts=(), losses_nats=(), num_tokens=1)
        side_file = tmp_path / f"{name}.safetensors"
        prune(dense, save_fitted(of_plan, what, side_file), tmp_path / name, fitted=side_file)
        found[name] = divergence(tmp_path / name, dense, windows().inputs)
    # Of Gemma-2 little but gains of norms can be tuned.
    assert 0 < found["after"] < (0.97 if FAMILIES[family].has_post_norms else 0.9) * found["before"]


def test_one_step_moves_every_weight_against_the_gradient_of_the_whole_model(tmp_path: Path) -> None:
    dense, model = saved(tmp_path, "llama")
    search, planned, fitting = fitted(dense, tmp_path / "work")
    wider, ids = with_all_refitted(planned), windows().inputs
    tensors = tuned(search, FAMILIES["llama"], wider, fitting.tensors, 1)  # as many windows as one step takes

    log_p = model(input_ids=ids).logits.log_softmax(-1).detach()
    layers = model.model.layers
    bias = fitting.tensors["fitted.2.o_proj.bias"]
    mapped = torch.nn.Linear(48, 48)
    mapped.load_state_dict({"weight": fitting.tensors["fitted.2.o_proj.weight"], "bias": bias})
    layers[2].self_attn.forward = lambda hidden_states, **_: (mapped(hidden_states), None)
    log_q = model(input_ids=ids).logits.log_softmax(-1)
    (log_p.exp() * (log_p - log_q)).sum(-1).mean().backward()
    moved = {
        "fitted.2.o_proj.weight": mapped.weight,
        "fitted.2.o_proj.bias": mapped.bias,
        **{f"fitted.{index}.attention.weight": layers[index].self_attn.o_proj.weight for index in (1, 3)},
        **{f"fitted.{index}.mlp.weight": layers[index].mlp.down_proj.weight for index in (1, 2, 3)},
    }
    assert moved.keys() == tensors.keys()
    for name, weight in moved.items():
        # Adam's first step: the rate times the gradient's sign, where that isn't tiny; a tenth of it to warm up.
        rate = tuning.RATE * weight.detach().square().mean().sqrt() / tuning.WARM_UP_STEPS
        sure = weight.grad.abs() > 1e-2 * weight.grad.abs().max()
        step = (tensors[name] - weight.detach())[sure]
        torch.testing.assert_close(step, -(rate * weight.grad.sign())[sure], rtol=1e-2, atol=1e-6, msg=name)


def test_a_killed_tuning_goes_on_after_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, _ = saved(tmp_path, "llama")
    search, planned, fitting = fitted(dense, tmp_path / "work")
    wider, before = with_all_refitted(planned), {name: fitting.tensors[name] for name in fitting.tensors}
    whole = tuned(opened(dense, windows(), tmp_path / "whole"), FAMILIES["llama"], wider, before, 3)
    steps, taken = tuning._Tuner._step, list[int]()

    def killed(tuner: Any, rows: list[int]) -> None:
        if len(taken) == 2:
            raise KeyboardInterrupt
        taken.append(1)
        steps(tuner, rows)

    monkeypatch.setattr(tuning._Tuner, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        tuned(search, FAMILIES["llama"], wider, before, 3)
    monkeypatch.setattr(tuning._Tuner, "_step", lambda tuner, rows: (taken.append(1), steps(tuner, rows)))
    again = tuned(search, FAMILIES["llama"], wider, before, 3)
    assert len(taken) == 3
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def tuned_plan(folder: Path, method: MethodName = "suffix-fit") -> PruningPlan:
    options = MethodOptions(weights=folder / "plan.safetensors", compare=False, tune_epochs=EPOCHS)
    calibration = CalibrationOptions(windows=16, window_length=64)
    return plan(reference_model.path(), method=method, num_layers=3, options=options, calibration=calibration)


def test_a_tuned_plan_prunes_to_a_checkpoint_that_is_as_good_as_its_record_says(tmp_path: Path) -> None:
    planned = tuned_plan(tmp_path)
    assert planned.fitted is not None and (told := planned.fitted.tuning) is not None
    assert told.kept and told.epochs == EPOCHS
    assert planned.attention[1] == RefitAttention() and planned.mlp.keys() == set(range(1, 12))
    prune(reference_model.path(), planned, tmp_path / "pruned", fitted=tmp_path / "plan.safetensors")
    gap = held_back_loss(tmp_path / "pruned", windows=24) - held_back_loss(reference_model.path(), windows=24)
    assert gap == pytest.approx(told.gap_nats_after, abs=1e-4)
    assert gap < told.gap_nats_before
    (curve,) = planned.curves
    chosen = curve.points[3]
    assert chosen.removed.endswith("tuned") and math.log1p(chosen.increase) == pytest.approx(told.gap_nats_after)
    assert chosen.increase_low < chosen.increase < chosen.increase_high


def test_tuning_that_makes_it_worse_is_told_of_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "RATE", 30.0)
    planned = tuned_plan(tmp_path)
    assert planned.fitted is not None and (told := planned.fitted.tuning) is not None
    assert not told.kept and told.gap_nats_after > told.gap_nats_before
    assert not planned.mlp and planned.attention[1] == Keep()
    prune(reference_model.path(), planned, tmp_path / "pruned", fitted=tmp_path / "plan.safetensors")
    gap = held_back_loss(tmp_path / "pruned", windows=24) - held_back_loss(reference_model.path(), windows=24)
    assert gap == pytest.approx(told.gap_nats_before, abs=1e-4)


def test_what_fits_nothing_has_nothing_to_tune(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"method harp, --tune(.|\n)*suffix-fit or choose-fit"):
        tuned_plan(tmp_path, "harp")


def test_what_is_gone_stays_so(tmp_path: Path) -> None:
    layout = read_layout(saved(tmp_path, "llama")[0])
    wider = with_all_refitted(plan_of(layout, Keep(), Keep(), linear_of("full", layout), Keep(), mlp={3: SkipMlp()}))
    assert wider.attention == (Keep(), RefitAttention(), linear_of("full", layout), RefitAttention())
    assert wider.mlp == {1: RefitMlp(), 2: RefitMlp(), 3: SkipMlp()}
