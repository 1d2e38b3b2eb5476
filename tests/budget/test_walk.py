"""What a walk of a method needs beside a search of alphas."""

from __future__ import annotations

from typing import Any

from hlap_export.budget import Model, SearchSize, plan_needs, search_needs
from hlap_export.checkpoint import layout_of
from hlap_export.recipe import PlanSection
from tests.tiny import tiny_model

DENSE = Model(layout=layout_of(tiny_model("llama").config.to_dict()), dtype="float32")


def test_a_walk_keeps_what_enters_every_layer_of_both_models() -> None:
    needs = plan_needs(DENSE, PlanSection(method="choose-fit", windows=8, window_length=33), room_bytes=None)
    assert sum(term.num_bytes for term in needs.disk) == 2 * 4 * 8 * 32 * 48 * 4
    alone = search_needs(DENSE, SearchSize(num_layers=1, windows=8, window_length=33), room_bytes=None)
    multiplied = [sum(work.amount for work in each.work if work.kind == "multiply") for each in (needs, alone)]
    assert multiplied[0] > 2 * multiplied[1]


def test_harp_to_a_target_walks_and_harp_to_a_number_searches() -> None:
    section = PlanSection(windows=8, window_length=33)
    to_a_number = plan_needs(DENSE, section, room_bytes=None)
    to_a_target = plan_needs(DENSE, section.model_copy(update={"target_kv_ratio": 0.5}), room_bytes=None)
    assert len(to_a_target.work) > len(to_a_number.work)


def test_only_a_method_that_fits_needs_memory_for_it_and_refitted_mlps_need_the_most() -> None:
    def memory(**asked: Any) -> float:
        section = PlanSection(windows=8, window_length=33, num_layers=2, **asked)
        return sum(term.num_bytes for term in plan_needs(DENSE, section, room_bytes=None).memory)

    dropped, fitted = memory(method="attention-drop"), memory(method="choose-fit")
    # The refitted o_proj has 6 heads of 16 inputs, down_proj 80; both 48 outputs.
    assert fitted - dropped == 8 * (10 * 96 * 96 + 4 * 96 * 48)
    assert memory(method="choose-fit", refit="mlp") - dropped == 8 * (10 * 80 * 80 + 4 * 80 * 48)
    assert memory(method="choose-fit", refit="none") - dropped == 8 * (10 * 48 * 48 + 4 * 48 * 48)
