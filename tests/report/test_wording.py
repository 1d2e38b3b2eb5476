from __future__ import annotations

import pytest

from hlap_export.report import wording
from hlap_export.report.summary import LayerRow
from tests.report.sample import sample_summary


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (182 * 2**20, "182.0 MiB"), (3 * 2**40, "3.00 TiB")],
)
def test_bytes_are_in_binary_units(count: int, words: str) -> None:
    assert wording.in_bytes(count) == words


@pytest.mark.parametrize(("count", "words"), [(999, "999"), (2_410_000, "2.41 M"), (8_030_261_248, "8.03 G")])
def test_counts_are_in_decimal_units(count: int, words: str) -> None:
    assert wording.in_numbers(count) == words


@pytest.mark.parametrize(("ratio", "words"), [(-0.051, "−5.1 %"), (0.2, "+20.0 %"), (0.0, "±0.0 %"), (-1e-9, "±0.0 %")])
def test_changes_have_a_sign(ratio: float, words: str) -> None:
    assert wording.percent(ratio) == words


def test_the_headline_counts_each_kind_of_change() -> None:
    layers = list(sample_summary().layers)
    layers[7] = layers[7].model_copy(update={"mlp": "skip", "is_pruned": True})
    layers[8] = layers[8].model_copy(update={"attention": "linear", "num_heads": 0, "num_kv_heads": 0, "mlp": "refit"})
    assert wording.headline(sample_summary().model_copy(update={"layers": tuple(layers)})) == (
        "3 of 12 layers lose their attention, 1 keeps fewer heads, 1 loses the MLP and 1 gets the MLP fitted anew"
    )


def test_the_headline_of_a_dense_run_says_that_nothing_was_pruned() -> None:
    dense = sample_summary()
    rows = tuple(
        row.model_copy(update={"attention": "full", "num_heads": 8, "is_pruned": False}) for row in dense.layers
    )
    assert wording.headline(dense.model_copy(update={"layers": rows})) == "nothing was pruned"


def test_the_verdict_says_where_a_failed_engine_goes_wrong() -> None:
    failed = sample_summary(logit_error=3e-2).model_copy(update={"fault": "first in layer 5"})
    assert wording.verdict(failed) == "not verified: prefill logits 0.03 (at most 1.0e-04); first in layer 5"


def test_an_engine_of_rounded_weights_is_not_called_the_same_as_pytorch() -> None:
    assert "same as PyTorch in 3 of 3 checks" in wording.verdict(sample_summary())
    quantised = sample_summary().model_copy(update={"dtype": "int4"})
    assert "within the bounds of int4 in 3 of 3 checks" in wording.verdict(quantised)


@pytest.mark.parametrize(
    ("speedup", "half", "words"),
    [(1.294, 0.01, "×1.29"), (1.294, 0.05, "×1.29"), (1.294, 0.09, "×1.3"), (1.213, 0.86, "×1.2")],
)
def test_a_speedup_has_no_digit_that_its_interval_leaves_open(speedup: float, half: float, words: str) -> None:
    changes = {"speedup": speedup, "speedup_low": speedup - half, "speedup_high": speedup + half}
    assert wording.of_speedup(sample_summary().latency[0].model_copy(update=changes)) == words


def test_layers_that_are_only_fitted_anew_have_not_lost_heads() -> None:
    layers = (
        LayerRow(layer=0, attention="full", num_heads=8, num_kv_heads=2, alpha=None, is_pruned=False),
        LayerRow(layer=1, attention="full", num_heads=8, num_kv_heads=2, alpha=None, is_pruned=True, mlp="refit"),
        LayerRow(layer=2, attention="full", num_heads=4, num_kv_heads=1, alpha=None, is_pruned=True, mlp="refit"),
        LayerRow(layer=3, attention="full", num_heads=8, num_kv_heads=2, alpha=None, is_pruned=True, mlp="skip"),
        LayerRow(layer=4, attention="linear", num_heads=0, num_kv_heads=0, alpha=None, is_pruned=True, mlp="refit"),
    )
    assert wording.layer_strip(layers) == "●●◍●◆"
    assert "fewer heads" in wording.layer_legend(layers)
    assert wording.layer_changes(layers) == ["layer 2: 4 query and 1 KV heads", "layer 3: no MLP", "layer 4: linear"]
