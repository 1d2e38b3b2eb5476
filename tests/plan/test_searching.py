"""From the verb to a pruned checkpoint: what the plan's curve promises is what the checkpoint does."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from hlap_export import reference_model
from hlap_export.checkpoint import load_model, read_layout
from hlap_export.errors import PlanError
from hlap_export.plan import CalibrationOptions, plan
from hlap_export.plan.layer_plan import Linear, Skip, ValueOnly
from hlap_export.plan.options import MethodName, MethodOptions
from hlap_export.plan.pruning_plan import PruningPlan, load_plan
from hlap_export.plan.side_file import side_file_of
from hlap_export.plan.targets import Targets
from hlap_export.prune import prune
from hlap_export.texts import read_tokens, spread_windows

CALIBRATION = CalibrationOptions(windows=8, window_length=64)
# Fits round to bfloat16, as the checkpoint stores weights, before they are judged: what is left is float32's error.
LOSS_ERROR_NATS = 1e-4


def made(
    folder: Path, method: MethodName, *, targets: Targets | None = None, num_layers: int | None = None
) -> PruningPlan:
    """A plan of the reference model, saved as a run saves it."""
    path = folder / "plan.json"
    options = MethodOptions(targets=targets or Targets(), weights=side_file_of(path), compare=method == "choose-fit")
    planned = plan(
        reference_model.path(), method=method, num_layers=num_layers, options=options, calibration=CALIBRATION
    )
    planned.save(path)
    return load_plan(path)


def held_back_loss(checkpoint: Path, windows: int = 12) -> float:
    """Nats per token of a checkpoint on every third of so many windows of the calibration text."""
    text = read_tokens(checkpoint, reference_model.calibration_text(), vocab_size=2048)
    ids = torch.tensor(spread_windows(text, windows=windows, window_length=64))[2::3]
    model = load_model(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1]).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


def test_a_plan_to_a_target_prunes_to_a_checkpoint_that_is_as_good_as_its_curve_says(tmp_path: Path) -> None:
    planned = made(tmp_path, "choose-fit", targets=Targets(kv_ratio=0.9))
    prune(reference_model.path(), planned, tmp_path / "pruned", fitted=side_file_of(tmp_path / "plan.json"))
    own, harp = planned.curves
    assert (own.method, harp.method) == ("choose-fit", "harp")
    assert len(own.points) == len(harp.points) == 7
    chosen = next(point for point in own.points if point.kv_ratio <= 0.9)
    assert chosen.num_removed == 2
    assert sum(isinstance(attention, Linear) for attention in planned.attention) == 2
    assert len(read_layout(tmp_path / "pruned").cached_layers) == 10
    assert held_back_loss(tmp_path / "pruned") == pytest.approx(math.log(chosen.perplexity), abs=LOSS_ERROR_NATS)
    assert held_back_loss(reference_model.path()) == pytest.approx(math.log(own.points[0].perplexity), abs=1e-4)


def test_a_perplexity_target_is_met_by_the_pruned_checkpoint_itself(tmp_path: Path) -> None:
    planned = made(tmp_path, "suffix-fit", targets=Targets(max_perplexity_increase=0.15))
    prune(reference_model.path(), planned, tmp_path / "pruned", fitted=side_file_of(tmp_path / "plan.json"))
    gap_nats = held_back_loss(tmp_path / "pruned") - held_back_loss(reference_model.path())
    assert 0 < math.expm1(gap_nats) <= 0.15
    (own,) = planned.curves
    chosen, beyond = own.points[own.chosen or 0], own.points[(own.chosen or 0) + 1]
    assert math.log1p(chosen.increase) == pytest.approx(gap_nats, abs=LOSS_ERROR_NATS)
    assert beyond.increase_high > 0.15


def test_harp_walks_to_targets_too_and_keeps_its_alphas_curves(tmp_path: Path) -> None:
    planned = made(tmp_path, "harp", targets=Targets(kv_ratio=0.95))
    assert isinstance(planned.attention[11], ValueOnly | Skip)
    assert planned.search is not None
    assert [found.layer for found in planned.search.layers] == [11]
    assert planned.search.perplexity_all_ones is not None
    assert [curve.method for curve in planned.curves] == ["harp"]


@pytest.mark.parametrize(("method", "num_mlps"), [("attention-drop", 0), ("block-drop", 2), ("mlp-drop", 2)])
def test_what_is_dropped_needs_no_side_file(method: MethodName, num_mlps: int, tmp_path: Path) -> None:
    planned = made(tmp_path, method, num_layers=2)
    num_attentions = 0 if method == "mlp-drop" else 2
    assert sum(isinstance(attention, Skip) for attention in planned.attention) == num_attentions
    assert len(planned.mlp) == num_mlps
    assert not side_file_of(tmp_path / "plan.json").exists()
    assert planned.search is not None
    assert (planned.search.perplexity_all_dropped is None) == (num_mlps > 0)


def test_a_number_of_layers_and_targets_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="expected a number of layers or targets to reach, found both"):
        made(tmp_path, "harp", num_layers=2, targets=Targets(kv_ratio=0.9))


def test_fitted_weights_need_a_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="expected a file for the fitted weights"):
        plan(reference_model.path(), method="suffix-fit", calibration=CALIBRATION)


def test_a_target_that_the_dense_model_meets_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    calibration = CalibrationOptions(text=Path("/nowhere.txt"))
    options = MethodOptions(targets=Targets(max_weight_bytes=12 * 2**30), weights=tmp_path / "plan.safetensors")
    with pytest.raises(PlanError, match=r"--max-weights: .* within them already"):
        plan(reference_model.path(), method="choose-fit", options=options, calibration=calibration)


@pytest.mark.parametrize("number", [0, -3])
@pytest.mark.parametrize("method", ["harp", "attention-drop"])
def test_a_number_of_layers_below_one_is_refused(method: MethodName, number: int) -> None:
    with pytest.raises(PlanError, match=f"expected at least 1, found {number}"):
        plan(reference_model.path(), method=method, num_layers=number, calibration=CALIBRATION)


@pytest.mark.parametrize(("windows", "method"), [(1, "choose-fit"), (3, "attention-drop"), (3, "block-drop")])
def test_too_few_windows_to_fit_and_judge_are_refused_by_the_settings_name(
    windows: int, method: MethodName, tmp_path: Path
) -> None:
    calibration = CalibrationOptions(windows=windows, window_length=64)
    options = MethodOptions(weights=tmp_path / "plan.safetensors")
    with pytest.raises(PlanError, match=f"plan.windows: expected at least 4.*, found {windows}"):
        plan(reference_model.path(), method=method, num_layers=1, options=options, calibration=calibration)


def test_four_windows_are_enough(tmp_path: Path) -> None:
    calibration = CalibrationOptions(windows=4, window_length=32)
    options = MethodOptions(weights=tmp_path / "plan.safetensors", compare=False)
    planned = plan(reference_model.path(), method="suffix-fit", num_layers=1, options=options, calibration=calibration)
    assert planned.curves[0].points[1].increase_low < planned.curves[0].points[1].increase_high


def test_how_parts_are_fitted_can_be_asked_for(tmp_path: Path) -> None:
    found: dict[tuple[bool, str], PruningPlan] = {}
    for follow_residual, refit in ((True, "none"), (False, "none"), (True, "both")):
        options = MethodOptions(
            weights=tmp_path / "plan.safetensors", follow_residual=follow_residual, refit=refit, compare=False
        )
        found[follow_residual, refit] = plan(
            reference_model.path(), method="suffix-fit", num_layers=2, options=options, calibration=CALIBRATION
        )
    perplexities = {key: planned.curves[0].points[2].perplexity for key, planned in found.items()}
    assert len(set(perplexities.values())) == 3
    assert sorted(found[True, "both"].mlp) == [10, 11]
    assert found[True, "none"].mlp == {}
    assert found[True, "both"].search is not None
    assert found[True, "both"].search.perplexity_all_ones is not None
